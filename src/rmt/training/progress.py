"""What a run says while it trains: a bar in a terminal, lines in a log file, the time left."""

from __future__ import annotations

import math
import time
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar
from rich import get_console
from torch import Tensor

from rmt.messages import duration
from rmt.recipes.schema import Recipe
from rmt.training.module import TrainingModule

#: Steps after which the expected time is printed.
STEPS = 10
#: Seconds between two lines of a log file within an epoch.
EVERY = 60.0


def progress(pace: Pace | None = None) -> ProgressBar:
    """Return the bar if there is a terminal (or a notebook) to draw it in, else log lines.

    Args:
        pace: of a training, which knows the time left; None in an evaluation.
    """
    console = get_console()
    return (Bar if console.is_terminal or console.is_jupyter else LogLines)(pace)


class Pace(Callback):
    """Measure seconds per batch and per evaluation; print the expected time after ten steps.

    The first batch is not counted: it compiles, and starts the loading processes.
    """

    def __init__(self) -> None:
        self._since = 0.0
        self._batches = self._evaluations = 0
        self._evaluating = self._evaluation_began = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any
    ) -> None:
        """Count a batch; after ten steps, print what the run will take."""
        if not self._since:
            self._since = time.monotonic()
            return
        self._batches += 1
        accumulate = trainer.accumulate_grad_batches
        if self._batches != STEPS * accumulate:
            return
        left = steps_of(trainer, pl_module) - trainer.global_step
        if left > 0:
            each = self._seconds_per_batch() * accumulate
            early = _recipe(pl_module).trainer.early_stopping_patience
            pl_module.print(
                f"one step takes {each:.2g} s: about {duration(each * left)} for the {left:,} "
                f"steps left, without evaluations{' and unless it stops early' if early else ''}"
            )

    def on_validation_start(self, *_: Any, **__: Any) -> None:
        """Start the clock of an evaluation."""
        self._evaluation_began = time.monotonic()

    def on_validation_end(self, *_: Any, **__: Any) -> None:
        """Count an evaluation."""
        self._evaluations += 1
        self._evaluating += time.monotonic() - self._evaluation_began

    def left(self, trainer: L.Trainer, module: L.LightningModule) -> float | None:
        """Return the seconds until the run's last step is evaluated; None before the second batch.

        An evaluation is counted as soon as one was measured.
        """
        if not self._batches:
            return None
        steps = steps_of(trainer, module)
        batches = max(0, steps - trainer.global_step) * trainer.accumulate_grad_batches
        seconds = batches * self._seconds_per_batch()
        if self._evaluations:
            assert isinstance(module, TrainingModule)
            ahead = max(0, evaluations_of(module.recipe) - len(module.history))
            seconds += ahead * self._evaluating / self._evaluations
        return seconds

    def _seconds_per_batch(self) -> float:
        return (time.monotonic() - self._since - self._evaluating) / self._batches


class LogLines(ProgressBar):
    """Print a line after each evaluation, and every minute in between.

    A line has the epoch, the step, the mean loss since the last line, the metric if it is new, the
    learning rate and the time left.

    Args:
        pace: knows the time left; None in an evaluation.
    """

    def __init__(self, pace: Pace | None = None) -> None:
        super().__init__()
        self._pace = pace
        self._on = True
        self._losses: list[Tensor] = []
        self._last_time = 0.0

    def enable(self) -> None:
        """Print lines."""
        self._on = True

    def disable(self) -> None:
        """Print none; Lightning calls it in all processes but the first."""
        self._on = False

    @property
    def is_enabled(self) -> bool:
        """Whether lines are printed."""
        return self._on

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._last_time = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Remember the loss; print a line if the last one is a minute old."""
        if not self._on:
            return
        # Lightning divides it by the number of batches per step.
        self._losses.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)
        if time.monotonic() - self._last_time >= EVERY:
            self._line(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print a line with the metric."""
        if self._on and trainer.state.fn == "fit":
            name = f"val/{cast(TrainingModule, pl_module).monitor}"
            value = trainer.callback_metrics[name].item()
            self._line(trainer, pl_module, f"{name} {value:.2f}")

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._last_time = time.monotonic()

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Print how far an evaluation is, every minute."""
        if time.monotonic() - self._last_time >= EVERY:
            self._last_time = time.monotonic()
            total = cast(list[int], trainer.num_test_batches)[dataloader_idx]
            self.print(f"evaluated {batch_idx + 1:,} of {total:,} batches")

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print at once, so that a log file can be followed."""
        if self._on:
            print(*args, **kwargs | {"flush": True})

    def _line(self, trainer: L.Trainer, module: L.LightningModule, metric: str = "") -> None:
        self._last_time = time.monotonic()
        epochs, steps = trainer.max_epochs or -1, steps_of(trainer, module)
        of_epochs = f"/{epochs}" if epochs > 0 else ""
        parts = [
            f"epoch {trainer.current_epoch + 1}{of_epochs}",
            f"step {trainer.global_step:,}/{steps:,}",
        ]
        if self._losses:
            parts.append(
                f"loss {sum(each.item() for each in self._losses) / len(self._losses):.4f}"
            )
            self._losses.clear()
        groups = trainer.optimizers[0].param_groups
        parts += [metric] if metric else []
        parts.append(f"lr {max(group['lr'] / group.get('lr_scale', 1) for group in groups):.2e}")
        left = self._pace.left(trainer, module) if self._pace else None
        parts += [] if left is None else [f"{duration(left)} left"]
        self.print("  ".join(parts))


class Bar(RichProgressBar):
    """Lightning's bar with loss, accuracy, images/s and the time left, and no version number.

    Args:
        pace: knows the time left of the run; None in an evaluation.
    """

    def __init__(self, pace: Pace | None = None) -> None:
        super().__init__()
        self._pace = pace

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return what is shown after the bar."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        left = self._pace.left(trainer, pl_module) if self._pace and trainer.training else None
        return shown if left is None else shown | {"left": duration(left)}


def steps_of(trainer: L.Trainer, module: L.LightningModule) -> int:
    """Return the optimizer steps of the whole run."""
    schedule = _recipe(module).schedule
    if schedule.steps:
        return schedule.steps
    each = cast(int, trainer.num_training_batches)
    return schedule.epochs * math.ceil(each / trainer.accumulate_grad_batches)


def evaluations_of(recipe: Recipe) -> int:
    """Return the evaluations of the whole run."""
    schedule, every = recipe.schedule, recipe.trainer.evaluate_every
    if schedule.steps:
        return math.ceil(schedule.steps / (every or max(1, schedule.steps // 10)))
    return math.ceil(schedule.epochs / (every or 1))


def _recipe(module: L.LightningModule) -> Recipe:
    assert isinstance(module, TrainingModule)
    return module.recipe
