"""Exported detectors find the same objects in onnxruntime, in crowded scenes too."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from rmt.deployment.onnx import export_parts, export_retinanet, load_parts
from rmt.detection import Detector, create_detector
from rmt.detection.detector import SCORE_THRESHOLD, Detections

# torch calls its own old name while it exports.
pytestmark = pytest.mark.filterwarnings("ignore:.create_unbacked_symint. is deprecated")
CLASSES = 8


def crowded(head: str, *, limit: int) -> Detector:
    """Return an untrained detector that finds up to ``limit`` objects of all classes anywhere."""
    model = create_detector(head, "rmt_nano", num_classes=CLASSES, min_size=96, max_size=128).eval()
    model.max_detections = limit
    for layer in [model.head] if head == "retinanet" else [model.rpn, *model.box_heads]:
        spread(layer.cls)
    model([torch.randint(256, (3, 96, 128)) / 255])
    for layer in getattr(model, "mask_heads", ()):
        nn.init.normal_(layer.logits.weight, std=1)
    return model


def spread(layer: nn.Conv2d | nn.Linear) -> None:
    """Normalise a score layer, when it is next used: mean 0 and deviation 1 of each output."""

    def change(layer: nn.Conv2d | nn.Linear, inputs: tuple[Tensor]) -> None:
        handle.remove()
        nn.init.zeros_(layer.bias)
        out = layer.forward(*inputs).transpose(0, 1).flatten(1)
        layer.weight /= out.std(dim=1).view(-1, *[1] * (layer.weight.ndim - 1))
        layer.bias -= out.mean(dim=1) / out.std(dim=1)

    handle = layer.register_forward_pre_hook(change)


def assert_same(found: Detections, expected: Detections) -> None:
    """Assert that both contain the same objects; those of equal score in any order."""
    assert len(found["scores"]) == len(expected["scores"])
    free = list(range(len(found["scores"])))
    for i, (box, score, label) in enumerate(
        zip(expected["boxes"], expected["scores"], expected["labels"], strict=True)
    ):
        near = (found["boxes"][free] - box).abs().amax(dim=1) < 1e-2
        near &= (found["scores"][free] - score).abs() < 1e-5
        near &= found["labels"][free] == label
        assert near.any(), f"detection {i} is not found"
        match = free.pop(int(near.nonzero()[0, 0]))
        if "masks" in expected:
            # A pixel of probability 0.5 but for the last bits may fall on either side.
            assert (found["masks"][match] != expected["masks"][i]).sum() <= 2


def in_graph(session: "onnxruntime.InferenceSession", **inputs: np.ndarray) -> Detections:
    names = ("boxes", "scores", "labels")
    outputs = session.run(list(names), inputs)
    return dict(zip(names, map(torch.from_numpy, outputs), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("canvas", [(96, 128), (160, 64)])
@torch.no_grad()
def test_retinanet_is_one_graph(canvas: tuple[int, int], tmp_path: Path) -> None:
    model = crowded("retinanet", limit=1000)
    nn.init.normal_(model.head.reg.weight, std=0.2)
    path = export_retinanet(model, tmp_path / "retinanet.onnx", size=canvas)
    assert not model.training
    session = onnxruntime.InferenceSession(path)
    whole = torch.randint(256, (3, *canvas)) / 255
    batch = model.batch([whole], resize=False)
    boxes, scores = model.candidates(model.maps(batch), batch.sizes)
    assert boxes.shape[1] > 1000  # of the finest level not all anchors are candidates
    assert (scores > SCORE_THRESHOLD).sum() > 10_000
    (expected,) = model([whole], resize=False)
    assert len(expected["scores"]) > 500
    assert set(expected["labels"].tolist()) == set(range(CLASSES))
    assert_same(in_graph(session, image=whole[None].numpy()), expected)
    # A smaller image in the corner of the same graph's canvas.
    height, width = canvas[0] - 25, canvas[1] - 14
    (expected,) = model([whole[:, :height, :width]], resize=False)
    size = np.array([height, width])
    assert_same(in_graph(session, image=whole[None].numpy(), size=size), expected)


@pytest.mark.slow
@torch.no_grad()
def test_a_graph_that_finds_nothing(tmp_path: Path) -> None:
    model = create_detector("retinanet", "rmt_nano", num_classes=3).train()
    path = tmp_path / "retinanet.onnx"
    export_retinanet(model, path, size=(64, 64), score_threshold=0.9)
    assert model.training
    found = in_graph(onnxruntime.InferenceSession(path), image=np.zeros((1, 3, 64, 64), "float32"))
    assert found["boxes"].shape == (0, 4)
    assert len(found["scores"]) == len(found["labels"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mask_rcnn", "cascade_mask_rcnn"])
@torch.no_grad()
def test_two_stages_run_in_parts(head: str, tmp_path: Path) -> None:
    model = crowded(head, limit=500)
    model.rpn.limits = (300, 300)
    # Rounding decides which of two boxes with nearly equal scores suppresses the other; the
    # suppression runs in torch on both sides, so it is switched off.
    model.iou_threshold = 1.0
    model.info["label_names"] = list("abcdefgh")
    runner = load_parts(export_parts(model, tmp_path, size=(96, 128)))
    assert runner.info == model.info
    runner.rpn.limits, runner.max_detections = model.rpn.limits, model.max_detections
    runner.iou_threshold = model.iou_threshold
    images = [torch.randint(256, (3, *size)) / 255 for size in ((96, 128), (90, 128), (48, 64))]
    for found, expected in zip(runner(images), model(images), strict=True):
        assert len(expected["scores"]) == 500
        assert set(expected["labels"].tolist()) == set(range(CLASSES))
        assert_same(found, expected)
    (nothing,) = runner(images[:1], score_threshold=1.0)
    assert nothing["masks"].shape == (0, 96, 128)
    with pytest.raises(ValueError, match=r"canvas is \(96, 96\), the exported one \(96, 128\)"):
        runner([torch.rand(3, 50, 50)])


def test_odd_sizes_are_refused(tmp_path: Path) -> None:
    model = create_detector("retinanet", "rmt_nano", num_classes=3)
    with pytest.raises(ValueError, match="multiples of 32"):
        export_retinanet(model, tmp_path / "x.onnx", size=(100, 128))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda said: [], "config.json is a list of 0"),
        (lambda said: said | {"canvas": 5}, "canvas is 5; expected a list"),
        (lambda said: said | {"canvas": [64, "x"]}, "canvas.1 is 'x'; expected a whole number"),
        (lambda said: said | {"canvas": [64]}, "is not of a two-stage detector with a canvas"),
        (lambda said: {k: v for k, v in said.items() if k != "config"}, "no entry 'config'"),
        (
            lambda said: said | {"config": said["config"] | {"architecture": "retinanet"}},
            "is not of a two-stage detector",
        ),
    ],
)
def test_a_faulty_description_is_refused(
    change: Callable[[dict], object], words: str, tmp_path: Path
) -> None:
    model = create_detector("mask_rcnn", "rmt_nano", num_classes=3)
    said = model.describe() | {"canvas": [64, 64]}
    (tmp_path / "config.json").write_text(json.dumps(change(said)))
    with pytest.raises(ValueError, match=words):
        load_parts(tmp_path)
