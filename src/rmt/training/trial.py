"""The time of a run, from a few batches of its own data on this machine."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from rmt.data.loaders import DataModule, loading_faults_named
from rmt.modeling.pretrained import uses_gpu
from rmt.recipes.schema import Recipe
from rmt.task import Task
from rmt.training.lightning import LoopData, new_trainer, quiet
from rmt.training.module import TrainingModule
from rmt.training.optim import BatchSize
from rmt.training.progress import evaluations_of

#: Batches of the training and of an evaluation; the first of each is not counted if there are more.
_BATCHES, _EVALUATED = 6, 2
#: Seconds after which no further batch is trained on.
_ENOUGH = 10.0


@dataclass(frozen=True)
class Times:
    """What was measured, in seconds.

    Attributes:
        step: of one optimizer step over all devices, loading included.
        evaluation: of one evaluation of the validation split.
        run: of the whole run: its steps and evaluations.
        machine: where it was measured: the name of the GPU, or the CPU's number of threads.
        peak_gib: most memory that was taken on a GPU; None on the CPU.
    """

    step: float
    evaluation: float
    run: float
    machine: str
    peak_gib: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values of three digits."""
        return {
            key: float(f"{value:.3g}") if isinstance(value, float) else value
            for key, value in asdict(self).items()
        }


def measure(
    task: Task[Any, Any, Any], recipe: Recipe, data: DataModule[Any, Any], devices: int
) -> Times:
    """Train on a few batches and evaluate two, on one device, and keep nothing.

    Args:
        task: of the recipe.
        recipe: of the run.
        data: of the run.
        devices: that the run is for, over all machines.

    Raises:
        ValueError: if the accelerator is not there, or a batch does not fit into its memory.
    """
    clock = _Clock()
    try:
        peak = train_briefly(
            task, recipe, data, batches=_BATCHES, evaluated=_EVALUATED, clock=clock
        )
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"a batch of {recipe.data.batch_size} images does not fit into the memory of "
            f"{torch.cuda.get_device_name()}: lower data.batch_size and set "
            "trainer.global_batch_size to what it was, or use trainer.grad_checkpointing"
        ) from error
    batch = BatchSize.of(recipe, devices)
    step = _typical(clock.trained) * batch.accumulation
    per_epoch = max(1, len(data.train_loader(world=devices)) // batch.accumulation)
    loader = data.eval_loader(data.splits.val, world=devices)
    evaluation = _typical(clock.evaluated) * len(loader)
    steps = recipe.schedule.steps or recipe.schedule.epochs * per_epoch
    threads = recipe.trainer.threads or torch.get_num_threads()
    on_cpu = f"{threads} CPU thread{'s' if threads > 1 else ''}"
    return Times(
        step=step,
        evaluation=evaluation,
        run=steps * step + evaluations_of(recipe) * evaluation,
        machine=on_cpu if peak is None else torch.cuda.get_device_name(),
        peak_gib=None if peak is None else peak / 2**30,
    )


def train_briefly(
    task: Task[Any, Any, Any],
    recipe: Recipe,
    data: DataModule[Any, Any],
    *,
    batches: int,
    evaluated: int = 0,
    clock: _Clock | None = None,
) -> int | None:
    """Train a new model on a few batches on one device; return the bytes taken on a GPU, or None.

    Args:
        task: of the recipe.
        recipe: of the run.
        data: of the run, with the same recipe.
        batches: to train on.
        evaluated: batches to evaluate afterwards.
        clock: measures both.

    Raises:
        ValueError: if the accelerator is not there.
        torch.OutOfMemoryError: if a batch does not fit into the memory of the GPU.
    """
    here = replace(recipe.trainer, devices=1, num_nodes=1, strategy="auto")
    recipe = replace(recipe, trainer=here)
    module = Trial(task, recipe, task.new_model(recipe, data.classes), data, train=True)
    on_gpu, threads = uses_gpu(recipe.trainer.accelerator), torch.get_num_threads()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        torch.set_num_threads(here.threads or threads)
        with quiet(), loading_faults_named():
            trainer = new_trainer(
                here,
                max_epochs=1,
                limit_train_batches=batches,
                limit_val_batches=0,
                num_sanity_val_steps=0,
                gradient_clip_val=recipe.optimizer.clip_grad or None,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                callbacks=[clock] if clock else [],
            )
            trainer.fit(module, LoopData(data))
            if evaluated:
                trainer.limit_val_batches = evaluated
                trainer.validate(module, LoopData(data), verbose=False)
    finally:
        torch.set_num_threads(threads)
    return torch.cuda.max_memory_allocated() if on_gpu else None


class Trial(TrainingModule):
    """A module that prints, logs and evaluates nothing, for a few steps of which nothing is kept.

    Attributes:
        lr: Lightning's finder asks for it.
    """

    lr = 0.0

    def on_fit_start(self) -> None:
        """Print nothing."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the sum of the losses, even if it is not finite."""
        losses, _ = self.criterion(self.network, batch)
        return torch.stack(list(losses.values())).sum()

    def on_validation_epoch_end(self) -> None:
        """Compute nothing."""


class _Clock(Callback):
    """Measure the seconds from batch to batch, loading included."""

    def __init__(self) -> None:
        self.trained: list[float] = []
        self.evaluated: list[float] = []
        self._last = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._last = time.monotonic()

    on_validation_start = on_train_start

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any
    ) -> None:
        """Record a batch; stop if that is enough."""
        self._record(self.trained)
        if sum(self.trained) > _ENOUGH:
            trainer.should_stop = True

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any
    ) -> None:
        """Record a batch."""
        self._record(self.evaluated)

    def _record(self, times: list[float]) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.monotonic()
        times.append(now - self._last)
        self._last = now


def _typical(times: list[float]) -> float:
    later = sorted(times[1:] or times)
    return later[len(later) // 2] if later else math.nan
