"""The examples run and do what they say."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

import rmt
import rmt.detection.toy

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_unet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = EXAMPLES / "unet_with_manhattan_attention.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--steps", "60"])
    names = runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) == 3
    assert losses == sorted(losses, reverse=True)
    noisy, restored = (float(db) for db in re.findall(r"([\d.]+) dB", printed))
    assert restored > noisy
    network = names["UNet"]((16, 32, 32))
    assert network(torch.zeros(1, 3, 33, 50)).shape == (1, 3, 33, 50)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rmt_yolo", "masa_yolo", "rmt_rtdetr"])
@pytest.mark.filterwarnings("ignore")  # Ultralytics' own
@pytest.mark.usefixtures("unchecked_annotations")  # sizes are tensors in its trace
def test_ultralytics(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains, and what it wrote is read again and gives what its export gives."""
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import ultralytics_yolo
    from ultralytics import RTDETR, YOLO

    rmt.detection.toy.toy(tmp_path / "toy", "yolo")
    words = {"--data": tmp_path / "toy" / "data.yaml", "--project": tmp_path / "runs"}
    words |= {"--epochs": 2, "--imgsz": 64, "--batch": 2, "--device": "cpu"}
    options = [str(word) for pair in words.items() for word in pair]
    path = EXAMPLES / "ultralytics" / f"{name}.yaml"
    monkeypatch.setattr(sys, "argv", ["ultralytics_yolo.py", str(path), *options])
    ultralytics_yolo.main()

    (best,) = tmp_path.rglob("best.pt")
    network = (RTDETR if "rtdetr" in name else YOLO)(best).model.float().eval()
    assert any(isinstance(part, rmt.ManhattanAttention) for part in network.modules())
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        ours, theirs = (
            out[0] if isinstance(out, tuple | list) else out
            for out in (network(x), torch.jit.load(best.with_suffix(".torchscript"))(x))
        )
    assert torch.allclose(ours, theirs, atol=1e-3)  # pixels, up to 64
