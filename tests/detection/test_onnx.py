"""Exported detectors find in onnxruntime what they find here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rmt.detection import HEADS
from rmt.detection.onnx import export_parts, export_retinanet, load_parts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.create_unbacked_symint. is deprecated"),
]
SIZE = (96, 128)


@pytest.fixture
def image() -> Tensor:
    return torch.randint(256, (3, *SIZE)) / 255


def spread(layer: nn.Module) -> None:
    """Give a fresh score layer answers that differ, so that no rounding changes their order."""
    nn.init.normal_(layer.weight, std=0.5)


def test_retinanet_is_one_graph(image: Tensor, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = HEADS["retinanet"]("rmt_nano", num_classes=3, min_size=96, max_size=128).eval()
    spread(model.head.cls)
    path = export_retinanet(model, tmp_path / "retinanet.onnx", size=SIZE)
    boxes, scores, labels = onnxruntime.InferenceSession(path).run(
        None, {"image": image[None].numpy()}
    )
    with torch.no_grad():
        (found,) = model([image])
    assert len(scores) == len(found["scores"]) > 10
    np.testing.assert_allclose(scores, found["scores"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(boxes, found["boxes"], rtol=1e-4, atol=1e-2)
    assert labels.tolist() == found["labels"].tolist()


def test_two_stages_run_in_parts(image: Tensor, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = HEADS["mask_rcnn"]("rmt_nano", num_classes=3, min_size=96, max_size=128).eval()
    for layer in (model.rpn.cls, model.box_heads[0].cls):
        spread(layer)
    model.info["label_names"] = ["a", "b", "c"]
    runner = load_parts(export_parts(model, tmp_path, size=SIZE))
    assert runner.info["label_names"] == ["a", "b", "c"]
    with torch.no_grad():
        (found,), (expected,) = runner([image]), model([image])
    assert len(found["scores"]) == len(expected["scores"]) > 10
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=1e-4, atol=1e-2)
    assert torch.equal(found["labels"], expected["labels"])
    areas = [each["masks"].flatten(1).sum(dim=1) for each in (found, expected)]
    assert (areas[0] - areas[1]).abs().max() <= 3
    with pytest.raises(ValueError, match=r"canvas is \(96, 96\), the exported one \(96, 128\)"):
        runner([torch.rand(3, 50, 50)])


def test_odd_sizes_are_refused(tmp_path: Path) -> None:
    model = HEADS["retinanet"]("rmt_nano", num_classes=3)
    with pytest.raises(ValueError, match="multiples of 32"):
        export_retinanet(model, tmp_path / "x.onnx", size=(100, 128))
