"""A run that was stopped, anywhere and by anything, ends as an uninterrupted one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rmt.data.loaders import SeededSamples
from rmt.training.callbacks import Interrupted
from rmt.training.fit import fit, load_recipe
from rmt.training.module import TrainingModule
from rmt.training.run_folder import BEST, LAST
from tasks import assert_same, signal_at, state

BATCHES = 4  # per epoch
RECIPE = """
task: classification
model: {name: rmt_nano, drop_path_rate: 0.2}
data: {format: folder, input_size: 32, batch_size: 8, num_workers: 0, val_fraction: 0.2}
augment: {rand_augment: rand-m5-n1-mstd0.5-inc1, erasing: 0.5, mixup: 0.4}
optimizer: {lr: 1.0e-3}
schedule: {epochs: 3, warmup_epochs: 0.5}
ema: {decay: 0.9, warmup: true}
"""


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 40 images of two classes, 32 of them for training, and a recipe that uses them."""
    folder = tmp_path_factory.mktemp("data")
    noise = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 100)):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = noise.integers(low, low + 155, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("{format:", "{root: " + str(folder / "images") + ", format:"))
    return path


def train(recipe_file: Path, out: Path, *overrides: str, resume: bool = False) -> None:
    fit(load_recipe(recipe_file, overrides), out, resume=resume)


@pytest.fixture(scope="module")
def straight(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("straight")
    train(recipe_file, out)
    return out


# First and second step, an epoch's last but one, last and next first, and the run's last.
@pytest.mark.parametrize("calls", [1, 2, BATCHES - 1, BATCHES, BATCHES + 1, 3 * BATCHES])
def test_stopped_in_any_step(
    calls: int,
    recipe_file: Path,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number = signal.SIGTERM if calls % 2 else signal.SIGINT
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    signal_at(monkeypatch, calls, number)
    with pytest.raises(Interrupted, match="--resume") as stop:
        train(recipe_file, tmp_path)
    assert stop.value.code == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert not (tmp_path / "metrics.json").exists()
    monkeypatch.undo()
    train(recipe_file, tmp_path, resume=True)
    for file in (LAST, BEST):
        assert_same(state(tmp_path, file), state(straight, file))


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_stopped_in_another_precision(
    precision: str, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saving and reading does not round anything."""
    words = [f"--trainer.precision={precision}"]
    train(recipe_file, tmp_path / "whole", *words)
    signal_at(monkeypatch, BATCHES + 2)
    with pytest.raises(Interrupted):
        train(recipe_file, tmp_path / "parts", *words)
    monkeypatch.undo()
    train(recipe_file, tmp_path / "parts", *words, resume=True)
    for file in (LAST, BEST):
        assert_same(state(tmp_path / "parts", file), state(tmp_path / "whole", file))
    wide = {v.dtype for v in state(tmp_path / "parts")["weights"].values() if v.is_floating_point()}
    assert wide == {torch.float64 if precision == "64-true" else torch.float32}


@pytest.fixture(scope="module")
def straight_in_steps(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("steps")
    train(recipe_file, out, *IN_STEPS)
    return out


# 14 batches, two per step; evaluations after batch 6, within an epoch, and after batch 12.
IN_STEPS = (
    "--schedule.epochs=0",
    "--schedule.steps=7",
    "--trainer.accumulate_grad_batches=2",
    "--trainer.evaluate_every=3",
    "--ema.decay=0",
)


@pytest.mark.parametrize("calls", [5, 6, 7, 12, 14])
def test_stopped_between_evaluations_within_epochs(
    calls: int,
    recipe_file: Path,
    straight_in_steps: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signal_at(monkeypatch, calls)
    with pytest.raises(Interrupted):
        train(recipe_file, tmp_path, *IN_STEPS)
    monkeypatch.undo()
    train(recipe_file, tmp_path, *IN_STEPS, resume=True)
    for file in (LAST, BEST):
        assert_same(state(tmp_path, file), state(straight_in_steps, file))
    assert [record["step"] for record in state(tmp_path)["found"]["history"]] == [3, 6, 7]


def test_killed_between_two_steps(recipe_file: Path, straight: Path, tmp_path: Path) -> None:
    """kill -9 leaves no time to save: the run continues from the last checkpoint."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "rmt_cli", "train", str(recipe_file), "--out", str(out)]
    command += ["--trainer.save_every=1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / LAST).exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert state(out)["at"][1] < 3 * BATCHES
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2
    assert "already holds a run; continue it with --resume" in again.stderr
    train(recipe_file, out, resume=True)
    for file in (LAST, BEST):
        ours, theirs = state(out, file), state(straight, file)
        ours["found"].pop("description"), theirs["found"].pop("description")  # holds save_every
        assert_same(ours, theirs)
    assert not list(out.rglob("*.partial"))


def test_every_epoch_sees_every_image_in_another_order(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, int]] = []
    read = SeededSamples.__getitem__

    def getitem(self: SeededSamples, key: tuple[int, int, int]) -> object:
        if len(self) == 8 * BATCHES:
            seen.append(key)
        return read(self, key)

    monkeypatch.setattr(SeededSamples, "__getitem__", getitem)
    train(recipe_file, tmp_path, "--schedule.epochs=2")
    epochs = [[i for epoch, i, _ in seen if epoch == wanted] for wanted in (0, 1)]
    assert [sorted(order) for order in epochs] == [list(range(32))] * 2
    assert epochs[0] != epochs[1]
    assert len(seen) == 64


def test_workers_change_nothing(recipe_file: Path, straight: Path, tmp_path: Path) -> None:
    train(recipe_file, tmp_path, "--data.num_workers=2")
    assert_same(state(tmp_path)["weights"], state(straight)["weights"])


def test_resumed_with_workers(
    recipe_file: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers read ahead of the loop; a resumed run must not start from their position."""
    signal_at(monkeypatch, BATCHES + 2)
    with pytest.raises(Interrupted):
        train(recipe_file, tmp_path, "--data.num_workers=2")
    monkeypatch.undo()
    train(recipe_file, tmp_path, "--data.num_workers=2", resume=True)
    assert_same(state(tmp_path)["weights"], state(straight)["weights"])


def test_a_signal_to_all_processes_is_the_loop_s(recipe_file: Path, tmp_path: Path) -> None:
    """As sent by `timeout`, a terminal or a scheduler: to the loading processes too."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "rmt_cli", "train", str(recipe_file), "--out", str(out)]
    command += ["--data.num_workers=2", "--schedule.epochs=1000", "--trainer.save_every=1"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (out / LAST).exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "--resume" in said


def test_runs_in_steps_are_evaluated_at_steps(recipe_file: Path, tmp_path: Path) -> None:
    """Four batches per epoch, three per step: an epoch is one step, and one batch is left out."""
    words = ["--schedule.epochs=0", "--schedule.steps=7", "--trainer.accumulate_grad_batches=3"]
    metrics = fit(load_recipe(recipe_file, [*words, "--trainer.evaluate_every=3"]), tmp_path)
    assert [record["step"] for record in metrics["history"]] == [3, 6, 7]
    with pytest.raises(
        ValueError, match=r"one step takes 5 batches, but the training split has only 4: lower"
    ):
        fit(
            load_recipe(recipe_file, [*words, "--trainer.accumulate_grad_batches=5"]),
            tmp_path / "more",
        )


def test_the_ema_follows_its_formula(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    step = TrainingModule.optimizer_step

    def optimizer_step(self: TrainingModule, *args: object, **kwargs: object) -> None:
        if not weights:
            weights.append(first(self.model).clone())
        step(self, *args, **kwargs)
        weights.append(first(self.model).clone())

    def first(network: torch.nn.Module) -> torch.Tensor:
        return next(network.parameters()).detach()

    monkeypatch.setattr(TrainingModule, "optimizer_step", optimizer_step)
    train(recipe_file, tmp_path, "--ema.warmup=false", "--schedule.epochs=1")
    expected = weights[0]
    for after in weights[1:]:
        expected = 0.9 * expected + 0.1 * after
    name = "ema.module.stem.0.weight"
    assert torch.allclose(state(tmp_path)["weights"][name], expected, atol=1e-7)


def test_refusals(recipe_file: Path, straight: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path} holds no run to resume"):
        train(recipe_file, tmp_path, resume=True)
    with pytest.raises(ValueError, match=f"{straight} already holds a run"):
        train(recipe_file, straight)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (
            "--trainer.early_stopping_patience=1",
            "--trainer.early_stopping_max_lr=1",
            "--optimizer.lr=1e-20",
        ),
    ],
)
def test_resuming_a_finished_run_only_evaluates_it_again(
    overrides: tuple[str, ...], recipe_file: Path, tmp_path: Path
) -> None:
    train(recipe_file, tmp_path, "--schedule.epochs=4", *overrides)
    before = state(tmp_path)
    assert (len(before["found"]["history"]) < 4) == bool(overrides)
    (tmp_path / "metrics.json").unlink()
    train(recipe_file, tmp_path, "--schedule.epochs=4", *overrides, resume=True)
    assert_same(state(tmp_path), before)
    assert (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_failing_write_leaves_the_good_file(
    failing: int, recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full in the middle of a file."""
    save, calls = torch.save, 0

    def full(content: object, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            save({"half": "written"}, path)
            raise OSError(28, "No space left on device")
        save(content, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train(recipe_file, tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.partial"))
    whole = list(tmp_path.glob("checkpoints/*.ckpt"))
    assert len(whole) == min(failing - 1, 2)
    for path in whole:
        assert state(tmp_path, str(path.relative_to(tmp_path)))["at"][0] >= 0


def test_a_diverging_run_is_stopped(recipe_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"the loss became nan at step .*optimizer\.lr"):
        train(recipe_file, tmp_path, "--optimizer.lr=1e30")
