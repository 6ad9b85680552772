"""A training and the demo print what a user asked for, and nothing of the libraries below."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

#: What `rmt train` prints, besides its first line.
TRAINING = (
    r"data: scikit-learn's digits, 10 classes .+",
    r"global batch size \d+ = .+; peak learning rate [\d.e-]+",
    r"one step takes [\d.]+ s: about .+ for the \d+ steps left, without evaluations",
    r"epoch 1/1  step \d+/\d+  loss [\d.]+(  val/top1 [\d.]+)?  lr [\d.e-]+  .+ left",
    r"best on validation: (raw|ema) weights; on the test split:",
    r" +(top1|top5)  [\d.]+",
    r" +images  360",
    r"",
    r"model   \S+  \(config\.json, model\.safetensors: rmt predict --checkpoint \S+\)",
    r"report  \S+\.(json|png)  .+",
)
#: What `rmt demo` prints after that.
PREDICTING = (
    r"rmt predict \S+ --checkpoint \S+ --top 3 --out \S+",
    r"\S+\.png(  \d \d+\.\d %){3}",
    r"Look at \S+: predictions\.png, .+",
    r"Next, with your own images .+:",
    r"  rmt (train|predict) .+",
)


def printed_without_a_terminal(*words: object) -> list[str]:
    """Run the command in a process of its own; assert that it succeeds and prints no errors."""
    command = [sys.executable, "-m", "rmt_cli", *map(str, words)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    return done.stdout.decode().splitlines()


def test_training_prints_only_its_own_lines(tmp_path: Path) -> None:
    """Nothing of Lightning's or torch's: no advice, no devices, no warning."""
    words = ("train", "small/digits", "--schedule.epochs", "1", "--out", tmp_path / "run")
    first, *lines = printed_without_a_terminal(*words)
    assert first == f"rmt_nano on scikit-learn's digits -> {tmp_path / 'run'}"
    expected = re.compile("|".join(TRAINING))
    assert [line for line in lines if not expected.fullmatch(line)] == []
    assert sum(line.startswith("report  ") for line in lines) == 8
    assert sum("  val/top1 " in line for line in lines) == 1


@pytest.mark.slow
def test_the_demo_prints_only_its_own_lines(tmp_path: Path) -> None:
    _, *lines = printed_without_a_terminal("demo", "--out", tmp_path / "demo")
    lines = [re.sub(r"^epoch \d+/\d+ ", "epoch 1/1 ", line) for line in lines]
    expected = re.compile("|".join(TRAINING + PREDICTING))
    assert [line for line in lines if not expected.fullmatch(line)] == []
    assert sum(".png  " in line for line in lines if not line.startswith("report")) == 8
