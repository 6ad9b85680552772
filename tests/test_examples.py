"""The examples run and do what they say."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

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
