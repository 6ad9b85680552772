"""Two processes train a segmenter as one does, and resume exactly, whole or sharded."""

import json
from pathlib import Path

import pytest
import torch
from test_distributed import SCRIPT, run, tensors

from rmt.segmentation.toy import toy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Each process's loss is a mean over its own pixels; the toy set leaves none of them unlabelled.
RECIPE = """
task: segmentation
model: {{head: {head}, backbone: rmt_nano, channels: 16, drop_path_rate: 0.0}}
data: {{root: {root}, crop: 48, batch: 2, workers: 0}}
inference: {{short: 0}}
optimizer: {{lr: 1.0e-4}}
schedule: {{epochs: 1, by_epoch: false}}
trainer: {{accelerator: cpu, threads: 1, log_every: 1, devices: 2, strategy: ddp}}
"""


@pytest.fixture(scope="module", params=["semantic_fpn", "upernet"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    data = toy(root / "data", images=8)
    (root / "recipe.yaml").write_text(RECIPE.format(head=request.param, root=data))
    (root / "script.py").write_text(SCRIPT)
    return root


def losses(out: Path, rank: int = 0) -> list[float]:
    return json.loads((out / f"losses.{rank}.json").read_text())


def test_two_processes_equal_one_that_accumulates(folder: Path) -> None:
    exact = ("--trainer.precision=64-true", "no-dropout")
    two = run(folder, "two", *exact)
    one = run(folder, "one", *exact, "--trainer.devices=1", "--data.batch_size=4")
    assert len(losses(one)) == len(losses(two)) == 2
    means = [(a + b) / 2 for a, b in zip(losses(two, 0), losses(two, 1), strict=True)]
    assert losses(one) == pytest.approx(means, rel=1e-12)
    first, second = tensors(one), tensors(two)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.allclose(second[key].double(), value.double(), rtol=0, atol=1e-9), key


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_resume_exactly(folder: Path, strategy: str) -> None:
    words = ("--schedule.epochs=2", f"--trainer.strategy={strategy}")
    whole = run(folder, f"whole-{strategy}", *words)
    run(folder, f"parts-{strategy}", *words, stop=3, status=143)
    parts = run(folder, f"parts-{strategy}", *words, "resume")
    first, second = tensors(whole), tensors(parts)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    results = [json.loads((out / "metrics.json").read_text()) for out in (whole, parts)]
    assert results[0]["history"] == results[1]["history"]
    assert results[0]["test"] == results[1]["test"]
