"""Two processes train and judge a detector as one does, and resume exactly."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_distributed import SCRIPT, run, tensors
from torch import nn

from rmt.detection import create_detector
from rmt.detection.toy import toy
from rmt.training.fit import evaluate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Six images a part, the last of each without an object.
RECIPE = """
task: detection
model: {{head: {head}, backbone: rmt_nano, checkpoint: {start}, min_size: 64, max_size: 96,
  roi_samples_per_image: 16, drop_path_rate: 0.0}}
data: {{root: {root}, batch: 1, workers: 0, keep_empty: true}}
optimizer: {{lr: 1.0e-4}}
schedule: {{epochs: 1, by_epoch: false}}
trainer: {{accelerator: cpu, threads: 1, log_every: 1, devices: 2, strategy: ddp}}
"""


@pytest.fixture(scope="module", params=["retinanet", "mask_rcnn"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write data, recipe and script, and weights that find many things from the start."""
    head, root = request.param, tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = create_detector(head, "rmt_nano", num_classes=2)
    for layer in [model.head] if head == "retinanet" else [model.rpn, *model.box_heads]:
        nn.init.normal_(layer.cls.weight, std=0.1)
        nn.init.zeros_(layer.cls.bias)
    model.save_pretrained(root / "start")
    words = {"head": head, "start": root / "start", "root": toy(root / "data")}
    (root / "recipe.yaml").write_text(RECIPE.format(**words))
    (root / "script.py").write_text(SCRIPT)
    return root


# Mask R-CNN draws its regions at random, other ones in another process.
retinanet = pytest.mark.parametrize("folder", ["retinanet"], indirect=True)


def metrics(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.json").read_text())


def losses(out: Path, rank: int = 0) -> list[float]:
    return json.loads((out / f"losses.{rank}.json").read_text())


def test_one_process_judges_as_two_did(folder: Path) -> None:
    # So small a rate that the weights still find something.
    found = metrics(run(folder, "judged", "--optimizer.lr=1e-6"))["test"]
    assert found["images"] == 6
    assert found["box_AP50"] > 0
    assert evaluate(folder / "judged", overrides=["--trainer.accelerator=cpu"]) == found


@retinanet
def test_two_processes_equal_one_that_accumulates(folder: Path) -> None:
    """Each image's losses are divided by its own anchors, so a step is a mean over batches."""
    exact = "--trainer.precision=64-true"
    two = run(folder, "two", exact)
    one = run(folder, "one", exact, "--trainer.devices=1", "--trainer.accumulate_grad_batches=2",
              "--trainer.strategy=auto")  # fmt: skip
    assert len(losses(two)) == 3
    shared = np.ravel([losses(two, rank) for rank in (0, 1)], order="F")
    assert losses(one)[:6] == pytest.approx(shared.tolist(), rel=1e-12)
    first, second = tensors(one), tensors(two)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.allclose(second[key].double(), value.double(), rtol=0, atol=1e-9), key
    assert metrics(one)["test"] == pytest.approx(metrics(two)["test"], rel=1e-12)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_resume_exactly(folder: Path, strategy: str) -> None:
    words = ("--schedule.epochs=2", f"--trainer.strategy={strategy}")
    whole = run(folder, f"whole-{strategy}", *words)
    run(folder, f"parts-{strategy}", *words, stop=4, status=143)
    parts = run(folder, f"parts-{strategy}", *words, "resume")
    first, second = tensors(whole), tensors(parts)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert metrics(whole)["history"] == metrics(parts)["history"]
    assert metrics(whole)["test"] == metrics(parts)["test"]
