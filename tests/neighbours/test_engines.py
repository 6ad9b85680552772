"""RMT in ONNX Runtime and OpenVINO by their own converters, without `rmt export`."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import rmt
from forms import image

SIZES = [(64, 64), (33, 65), (96, 48)]


@pytest.mark.slow
# torch calls its own old name while it exports.
@pytest.mark.filterwarnings("ignore:.create_unbacked_symint. is deprecated")
@torch.no_grad()
def test_onnx_for_all_sizes(tmp_path: Path) -> None:
    """By timm's exporter, which its onnx_export.py calls: batch, height and width are dynamic."""
    import onnxruntime
    from timm.utils.onnx import onnx_export

    model = rmt.create_model("rmt_nano", num_classes=7).eval()
    path = str(tmp_path / "rmt.onnx")
    onnx_export(model, path, image(64, 96), use_dynamo=True, dynamic_size=True)
    session = onnxruntime.InferenceSession(path)
    for size in SIZES:
        x = image(*size, batch=3)
        (found,) = session.run(None, {"input0": x.numpy()})
        assert torch.allclose(torch.from_numpy(found), model(x), atol=1e-5)


@pytest.mark.slow
def test_onnx_by_the_torchscript_exporter_crashes(tmp_path: Path) -> None:
    """Not our mistake, and no exception: once this fails, the table in the docs is out of date."""
    code = (
        "import rmt, torch; model = rmt.create_model('rmt_nano', num_classes=7).eval(); "
        "torch.onnx.export(model, (torch.randn(1, 3, 64, 64),), 'rmt.onnx', dynamo=False)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert run.returncode < 0, run.stderr


@pytest.mark.usefixtures("unchecked_annotations")  # sizes are tensors in a trace
@pytest.mark.parametrize(("size", "fused"), [(SIZES[0], False), (SIZES[1], True), (SIZES[2], True)])
@torch.no_grad()
def test_openvino_converts_directly(size: tuple[int, int], fused: bool) -> None:
    import openvino

    model, x = rmt.create_model("rmt_nano", num_classes=7).eval(), image(*size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit.trace, which is deprecated
        converted = openvino.convert_model(model.fuse() if fused else model, example_input=x)
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = torch.from_numpy(compiled(x.numpy())[0])
    assert torch.allclose(found, model(x), atol=1e-5)
