"""Two processes on gloo do what one does: the same steps, the same evaluation, the same resume."""

import json
import os
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from rmt.classification.recipe import Data
from rmt.classification.datasets import open_splits
from rmt.data.samplers import TestBatches, TrainBatches
from rmt.training.fit import LAST

RECIPE = """
task: classification
model: {name: rmt_nano, drop_path_rate: 0.0}
data: {input_size: 32, batch_size: 4, num_workers: 0, crop_pct: 1.0}
augment: {erasing: 0.5, label_smoothing: 0.0}
optimizer: {lr: 1.0e-3, reference_batch_size: 8}
schedule: {epochs: 1, warmup_epochs: 0.5, by_epoch: false}
ema: {decay: 0.9}
trainer: {accelerator: cpu, threads: 1, precision: 64-true, log_every: 1, devices: 2}
"""

# Batches of another size have other statistics. Joint ones are the business of synchronised batch
# norm, which torch has for accelerators only; so here the norms keep their running statistics.
SCRIPT = """
import json, os, signal, sys
import torch
from rmt.training.module import Engine
from rmt.training.callbacks import Interrupted
from rmt.training.fit import fit, load_recipe

out, stop, *words = sys.argv[1:]
losses, step = [], Engine.training_step

def training_step(self, batch, batch_idx):
    for module in self.model.modules():
        if isinstance(module, still):
            module.eval()
    loss = step(self, batch, batch_idx)
    losses.append(loss.item())
    if len(losses) == int(stop) and self.global_rank == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return loss

Engine.training_step = training_step
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write real handwritten digits, 80 for training and 27 to judge, a recipe and the script."""
    root = tmp_path_factory.mktemp("data")
    digits = open_splits(Data(format="digits")).train
    for i in range(107):
        to = root / "images" / ("train" if i < 80 else "val") / digits.classes[digits.labels[i]]
        to.mkdir(parents=True, exist_ok=True)
        digits.image(i).convert("RGB").resize((40, 40)).save(to / f"{i}.png")
    images = root / "images"
    (root / "recipe.yaml").write_text(RECIPE.replace("{input", f"{{root: {images}, input"))
    (root / "script.py").write_text(SCRIPT)
    return root


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


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("strategy", "precision", "loss_within", "weights_within"),
    [("ddp", "64-true", 1e-12, 1e-9), ("fsdp2", "32-true", 1e-5, 1e-4)],  # no float64 in FSDP2
)
def test_two_processes_equal_one_with_twice_the_batch(
    folder: Path, strategy: str, precision: str, loss_within: float, weights_within: float
) -> None:
    words = (f"--trainer.precision={precision}",)
    one = run(folder, f"one-{strategy}", "--trainer.devices=1", "--data.batch_size=8", *words)
    two = run(folder, f"two-{strategy}", f"--trainer.strategy={strategy}", *words)
    losses = [json.loads((out / f"losses.{i}.json").read_text()) for out, i in
              ((one, 0), (two, 0), (two, 1))]  # fmt: skip
    assert len(losses[0]) == 10
    assert np.mean(losses[1:], axis=0) == pytest.approx(losses[0], rel=loss_within)
    first, second = tensors(one), tensors(two)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert second[key].dtype == value.dtype
        assert torch.allclose(second[key].double(), value.double(), rtol=0, atol=weights_within), (
            key
        )
    results = [json.loads((out / "metrics.json").read_text()) for out in (one, two)]
    assert results[0]["test"]["images"] == results[1]["test"]["images"] == 27  # none twice
    assert results[0]["test"] == pytest.approx(results[1]["test"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("strategy", "precision"), [("ddp", "64-true"), ("fsdp2", "32-true")])
def test_two_processes_resume_exactly(folder: Path, strategy: str, precision: str) -> None:
    words = (f"--trainer.strategy={strategy}", f"--trainer.precision={precision}")
    words += ("--schedule.epochs=2",)
    whole = run(folder, f"whole-{strategy}", *words)
    run(folder, f"parts-{strategy}", *words, stop=13, status=143)
    parts = run(folder, f"parts-{strategy}", *words, "resume")
    first, second = tensors(whole), tensors(parts)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    results = [json.loads((out / "metrics.json").read_text()) for out in (whole, parts)]
    assert results[0]["history"] == results[1]["history"]
    assert results[0]["test"] == results[1]["test"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_launchers_of_a_cluster_do_the_same(folder: Path) -> None:
    """What docs/imagenet.md tells to type: torchrun, and srun's variables for each process."""
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
def test_the_processes_share_a_step_as_one_would_take_it(world: int) -> None:
    alone = list(TrainBatches(1000, 8 * world, seed=3, repeats=3))
    shares = [
        list(TrainBatches(1000, 8, seed=3, repeats=3, rank=rank, world=world))
        for rank in range(world)
    ]
    assert len({len(share) for share in shares}) == 1
    for step, batch in enumerate(zip(*shares, strict=True)):
        assert sorted(chain.from_iterable(batch)) == sorted(alone[step])


def test_copies_of_an_image_fall_to_different_processes() -> None:
    shares = [list(TrainBatches(600, 4, seed=0, repeats=3, rank=r, world=3)) for r in range(3)]
    step = [[index for _, index, _ in share[0]] for share in shares]
    assert step[0] == step[1] == step[2]
    assert len(set(step[0])) == 4
    # As timm's sampler: an epoch keeps its length, rounded down to 256.
    assert sum(map(len, shares[0])) == 512 // 3 // 4 * 4


def test_each_test_image_is_judged_once() -> None:
    for world in (1, 2, 5):
        seen = [
            index
            for rank in range(world)
            for batch in TestBatches(13, 4, rank=rank, world=world)
            for _, index, _ in batch
        ]
        assert sorted(seen) == list(range(13))
