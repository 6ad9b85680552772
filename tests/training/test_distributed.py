"""Two processes on gloo equal one: the same steps, the same evaluation, the same resuming."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rmt.detection.toy
import rmt.segmentation.toy
from rmt.classification.datasets import open_splits
from rmt.classification.recipe import Data
from rmt.data.samplers import EvalBatches, TrainBatches
from rmt.detection import create_detector
from rmt.files import for_people
from rmt.training.evaluate import evaluate
from rmt.training.run_folder import LAST

RUN = """
schedule: {{epochs: 1, by_epoch: false{warmup}}}
trainer: {{accelerator: cpu, threads: 1, log_every: 1, devices: 2, strategy: ddp}}
"""
CLASSIFICATION = """
task: classification
model: {{name: rmt_nano, drop_path_rate: 0.0}}
data: {{root: {root}, input_size: 32, batch_size: 4, num_workers: 0, crop_pct: 1.0}}
augment: {{erasing: 0.5, label_smoothing: 0.0}}
optimizer: {{lr: 1.0e-3, reference_batch_size: 8}}
ema: {{decay: 0.9}}
"""
SEGMENTATION = """
task: segmentation
model: {{head: {head}, backbone: rmt_nano, channels: 16, drop_path_rate: 0.0}}
data: {{root: {root}, crop: 48, batch_size: 2, num_workers: 0}}
inference: {{min_size: 0}}
optimizer: {{lr: 1.0e-4}}
"""
DETECTION = """
task: detection
model: {{head: {head}, backbone: rmt_nano, checkpoint: {start}, min_size: 64, max_size: 96,
  roi_samples_per_image: 16, drop_path_rate: 0.0}}
data: {{root: {root}, batch_size: 1, num_workers: 0, keep_empty: true}}
optimizer: {{lr: 1.0e-4}}
"""


@dataclass(frozen=True)
class Body:
    """A model to train in two processes, and how one process does the same.

    Attributes:
        recipe: template of the recipe.
        write: writes the data.
        images: in the validation split.
        alone: what makes one process take the same steps.
        steps: in the first epoch, on two processes.
        in_turn: one process takes the batches of the two in turn; else their losses are averaged.
    """

    recipe: str
    write: Callable[[Path], object]
    images: int
    alone: tuple[str, ...] = ()
    steps: int = 0
    in_turn: bool = False


def write_digits(root: Path) -> None:
    """Write real handwritten digits, 80 for training and 27 for validation."""
    digits = open_splits(Data(format="digits")).train
    for i in range(107):
        to = root / ("train" if i < 80 else "val") / digits.classes[digits.labels[i]]
        to.mkdir(parents=True, exist_ok=True)
        digits.image(i).convert("RGB").resize((40, 40)).save(to / f"{i}.png")


def write_masks(root: Path) -> None:
    rmt.segmentation.toy.toy(root, images=8)


BODIES = {
    "rmt_nano": Body(CLASSIFICATION, write_digits, 27, ("--data.batch_size=8",), 10),
    # Each process's loss is a mean over its own pixels; the toy set leaves none unlabelled.
    "semantic_fpn": Body(SEGMENTATION, write_masks, 8, ("--data.batch_size=4",), 2),
    "upernet": Body(SEGMENTATION, write_masks, 8, ("--data.batch_size=4",), 2),
    # Each image's losses are divided by its own anchors, so a step is a mean over batches.
    "retinanet": Body(
        DETECTION,
        rmt.detection.toy.toy,
        6,
        ("--trainer.accumulate_grad_batches=2", "--trainer.strategy=auto"),
        3,
        in_turn=True,
    ),
    # It samples regions at random, different ones in each process.
    "mask_rcnn": Body(DETECTION, rmt.detection.toy.toy, 6),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write data, recipe and script of each body."""
    made = {}
    for head, body in BODIES.items():
        made[head] = root = tmp_path_factory.mktemp(head)
        body.write(root / "data")
        if body.recipe == DETECTION:
            detector_that_finds(head).save_pretrained(root / "start")
        text = body.recipe + RUN
        warmup = ", warmup_epochs: 0.5" if body.recipe == CLASSIFICATION else ""
        words = {"head": head, "start": root / "start", "root": root / "data", "warmup": warmup}
        (root / "recipe.yaml").write_text(text.format(**words))
        (root / "script.py").write_text(SCRIPT)
    return made


def detector_that_finds(head: str) -> nn.Module:
    """Return a detector that finds many objects from the start."""
    torch.manual_seed(0)
    model = create_detector(head, "rmt_nano", num_classes=2)
    for layer in [model.head] if head == "retinanet" else [model.rpn, *model.box_heads]:
        nn.init.normal_(layer.cls.weight, std=0.1)
        nn.init.zeros_(layer.cls.bias)
    return model


@pytest.fixture
def folder(folders: dict[str, Path], head: str) -> Path:
    return folders[head]


# Batches of another size have other statistics. Joint ones are the business of synchronised batch
# norm, which torch has for accelerators only; so here the norms keep their running statistics.
SCRIPT = """
import json, os, signal, sys
import torch
from rmt.training.module import TrainingModule
from rmt.training.callbacks import Interrupted
from rmt.training.fit import fit, load_recipe

out, stop, *words = sys.argv[1:]
losses, step = [], TrainingModule.training_step

def training_step(self, batch, batch_idx):
    for module in self.model.modules():
        if isinstance(module, still):
            module.eval()
    loss = step(self, batch, batch_idx)
    losses.append(loss.item())
    if len(losses) == int(stop) and self.global_rank == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return loss

TrainingModule.training_step = training_step
resume, dropout = "resume" in words, "no-dropout" not in words
words = [word for word in words if word.startswith("--") or word.endswith(".yaml")]
still = (torch.nn.modules.batchnorm._BatchNorm, *([] if dropout else [torch.nn.Dropout2d]))
try:
    fit(load_recipe(words[0], words[1:]), out, resume=resume)
except Interrupted as stopped:
    sys.exit(stopped.code)
rank = os.environ.get("LOCAL_RANK", "0")
with open(f"{out}/losses.{rank}.json", "w") as file:
    json.dump(losses, file)
"""


def run(folder: Path, name: str, *words: str, stop: int = 0, status: int = 0) -> Path:
    out = folder / name
    command = [sys.executable, folder / "script.py", out, stop, folder / "recipe.yaml", *words]
    done = subprocess.run(
        [str(word) for word in command],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == status, done.stderr[-3000:]
    return out


def clean_environment() -> dict[str, str]:
    """Return this process's variables without those of a launcher around it."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("LOCAL_", "SLURM_", "PL_"))}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return torch.load(out / LAST, weights_only=True)["state_dict"]


def losses(out: Path, rank: int = 0) -> list[float]:
    return json.loads((out / f"losses.{rank}.json").read_text())


def metrics(out: Path) -> dict:
    return json.loads((out / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("head", "strategy", "precision", "loss_within", "weights_within"),
    [
        *((head, "ddp", "64-true", 1e-12, 1e-9) for head, body in BODIES.items() if body.alone),
        ("rmt_nano", "fsdp2", "32-true", 1e-5, 1e-4),  # FSDP2 has no float64
    ],
)
def test_two_processes_equal_one(
    head: str,
    strategy: str,
    precision: str,
    loss_within: float,
    weights_within: float,
    folder: Path,
) -> None:
    body = BODIES[head]
    words = (f"--trainer.precision={precision}", "no-dropout")
    one = run(folder, f"one-{strategy}", "--trainer.devices=1", *words, *body.alone)
    two = run(folder, f"two-{strategy}", f"--trainer.strategy={strategy}", *words)
    assert len(losses(two)) == body.steps
    each = [losses(two, rank) for rank in (0, 1)]
    expected = np.ravel(each, order="F") if body.in_turn else np.mean(each, axis=0)
    assert losses(one)[: len(expected)] == pytest.approx(expected.tolist(), rel=loss_within)
    first, second = tensors(one), tensors(two)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert second[key].dtype == value.dtype
        within = {"rtol": 0, "atol": weights_within}
        assert torch.allclose(second[key].double(), value.double(), **within), key
    assert metrics(one)["test"]["images"] == body.images  # none twice
    assert metrics(two)["test"] == pytest.approx(metrics(one)["test"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
def test_one_process_evaluates_as_two_did(head: str, folder: Path) -> None:
    """Average precision is gathered from both, and there are objects to find."""
    # So small a rate that the weights still find something.
    found = metrics(run(folder, "evaluated", "--optimizer.lr=1e-6"))["test"]
    assert found["images"] == 6
    assert found["box_AP50"] > 0
    again = evaluate(folder / "evaluated", overrides=["--trainer.accelerator=cpu"])
    assert for_people(again) == found  # as the run has written it


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("head", BODIES)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_resume_exactly(head: str, strategy: str, folder: Path) -> None:
    wide = ["--trainer.precision=64-true"] if (head, strategy) == ("rmt_nano", "ddp") else []
    words = ("--schedule.epochs=2", f"--trainer.strategy={strategy}", *wide)
    stop = {"rmt_nano": 13, "semantic_fpn": 3, "upernet": 3}.get(head, 4)
    whole = run(folder, f"whole-{strategy}", *words)
    run(folder, f"parts-{strategy}", *words, stop=stop, status=143)
    parts = run(folder, f"parts-{strategy}", *words, "resume")
    first, second = tensors(whole), tensors(parts)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert metrics(whole)["history"] == metrics(parts)["history"]
    assert metrics(whole)["test"] == metrics(parts)["test"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_launchers_of_a_cluster_do_the_same(folders: dict[str, Path]) -> None:
    """The commands in docs/imagenet.md: torchrun, and srun's variables for each process."""
    folder = folders["rmt_nano"]
    train = [sys.executable, "-m", "rmt_cli", "train", folder / "recipe.yaml"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    words = ["--trainer.strategy=ddp", "--out"]
    job = {
        "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    starts = {
        "lightning": [(train, {})],
        "torchrun": [([*torchrun, *train[1:]], {})],
        "srun": [(train, job | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}) for i in (0, 1)],
    }
    for name, commands in starts.items():
        processes = [
            subprocess.Popen(
                [str(word) for word in (*command, *words, folder / name)],
                env=clean_environment() | own,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for command, own in commands
        ]
        for process in processes:
            _, complaint = process.communicate(timeout=300)
            assert process.returncode == 0, (name, complaint[-3000:])
    wanted = tensors(folder / "lightning")
    for name in ("torchrun", "srun"):
        found = tensors(folder / name)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted), name


@pytest.mark.parametrize("world", [2, 3, 8])
def test_several_processes_make_the_steps_of_one(world: int) -> None:
    alone = list(TrainBatches(1000, 8 * world, seed=3, repeats=3))
    parts = [
        list(TrainBatches(1000, 8, seed=3, repeats=3, rank=rank, world=world))
        for rank in range(world)
    ]
    assert len({len(part) for part in parts}) == 1
    for step, batch in enumerate(zip(*parts, strict=True)):
        assert sorted(chain.from_iterable(batch)) == sorted(alone[step])


def test_copies_of_an_image_fall_to_different_processes() -> None:
    parts = [list(TrainBatches(600, 4, seed=0, repeats=3, rank=r, world=3)) for r in range(3)]
    step = [[index for _, index, _ in part[0]] for part in parts]
    assert step[0] == step[1] == step[2]
    assert len(set(step[0])) == 4
    # As timm's sampler: an epoch keeps its length, rounded down to 256.
    assert sum(map(len, parts[0])) == 512 // 3 // 4 * 4


def test_each_test_image_is_evaluated_once() -> None:
    for world in (1, 2, 5):
        seen = [
            index
            for rank in range(world)
            for batch in EvalBatches(13, 4, rank=rank, world=world)
            for _, index, _ in batch
        ]
        assert sorted(seen) == list(range(13))
