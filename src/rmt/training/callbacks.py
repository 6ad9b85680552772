"""What the training loop does besides training: checkpoints, signals, throughput."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint

from rmt.data.loaders import kill_workers
from rmt.training.lightning import (
    any_process,
    begin_next_epoch_if_whole,
    evaluate_at_the_end,
    evaluation_follows,
)
from rmt.training.module import TrainingModule
from rmt.training.progress import steps_of


class Interrupted(Exception):  # noqa: N818 - a request, not an error
    """A signal asked the run to stop; its state is saved.

    Attributes:
        code: exit status of the command, 128 + the signal's number.
    """

    def __init__(self, number: int, where: Path) -> None:
        self.code = 128 + number
        super().__init__(
            f"stopped by {signal.Signals(number).name}; {where} holds everything done so far: "
            "repeat the command with --resume to continue"
        )


class KeepBest(Checkpoint):
    """Keep the weights of the best evaluation, as the module records it, in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if this evaluation is the best one."""
        assert isinstance(pl_module, TrainingModule)
        if trainer.state.fn == "fit" and pl_module.best.at == len(pl_module.history) - 1:
            trainer.save_checkpoint(self.path, weights_only=False)


class StopEarly(Callback):
    """Stop after some evaluations without a better one, once the learning rate has come down.

    Args:
        patience: number of these evaluations.
        max_lr: see :attr:`rmt.recipes.schema.TrainerConfig.early_stopping_max_lr`.
    """

    def __init__(self, patience: int, max_lr: float) -> None:
        self.patience, self.max_lr = patience, max_lr

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop again if the resumed run had already stopped early."""
        self.on_validation_end(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the evaluations since the best one; say so when they are enough."""
        assert isinstance(pl_module, TrainingModule)
        best, history = pl_module.best, pl_module.history
        if best.at < 0 or trainer.global_step >= steps_of(trainer, pl_module):
            return
        since = [int(record["step"]) for record in history[best.at + 1 :]]
        if sum(pl_module.has_come_down(step, self.max_lr) for step in since) < self.patience:
            return
        trainer.should_stop = True
        step, epoch = (int(history[best.at][key]) for key in ("step", "epoch"))
        pl_module.print(
            f"stopped early after {len(history)} evaluations: the last {len(since)} were not "
            f"better than val/{pl_module.monitor} {best.score:.2f} at step {step:,} "
            f"(epoch {epoch + 1}); the {best.weights} weights of that step are kept"
        )


class KeepLast(Checkpoint):
    """Keep the state of the run in one file and the one before it, and stop cleanly on a signal.

    The file is written at each epoch's end, after each evaluation within an epoch, every
    ``every`` steps if that is not 0, and when Ctrl-C or SIGTERM asks for a stop. It is written
    only where a resumed run can continue exactly: between two optimizer steps with no
    evaluation between them, or at an epoch's end; a write that falls elsewhere waits. A second
    signal ends the process at once, even if it waits for something.

    Args:
        path: of the file.
        previous: path that the old file is moved to before a new one is written.
        every: steps between writes; 0 for none.
    """

    def __init__(self, path: Path, previous: Path, every: int) -> None:
        self.path, self.previous, self.every = path, previous, every
        self.asked: int | None = None
        self._due = False
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a new epoch if the resumed one was complete; install the signal handlers."""
        begin_next_epoch_if_whole(trainer)
        # Instead of Lightning's handlers, which would not finish the step.
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Restore the previous signal handlers."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    on_exception = on_train_end

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make sure that the last epoch is evaluated."""
        evaluate_at_the_end(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, at: int
    ) -> None:
        """Save at each interval; stop if asked, in all processes at the same step."""
        asked = any_process(trainer, self.asked is not None)
        stepped = (at + 1) % trainer.accumulate_grad_batches == 0
        if self.every and stepped and trainer.global_step % self.every == 0:
            self._due = True
        safe = stepped and not evaluation_follows(trainer) and not trainer.is_last_batch
        if (asked or self._due) and safe:
            self._save(trainer, asked)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember to save after an evaluation."""
        self._due = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after an epoch."""
        self._save(trainer, any_process(trainer, self.asked is not None))

    def _save(self, trainer: L.Trainer, asked: bool) -> None:
        if trainer.is_global_zero and self.path.exists():
            os.replace(self.path, self.previous)
        # With the state of optimizer, schedule and loop.
        trainer.save_checkpoint(self.path, weights_only=False)
        self._due = False
        if asked:
            raise Interrupted(self.asked or signal.SIGTERM, self.path)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked is not None:
            # Loading processes ignore other signals, and exiting would wait for one that hangs.
            kill_workers()
            name = signal.Signals(number).name
            os.write(2, f"\nrmt: stopped at once by a second {name}\n".encode())
            os._exit(128 + number)
        self.asked = number


class Throughput(Callback):
    """Log training images per second over all devices."""

    def __init__(self) -> None:
        self._since = 0.0

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        """Start the clock with the first batch."""
        self._since = self._since or time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any
    ) -> None:
        """Log images over the time since the last batch's end, loading included."""
        assert isinstance(pl_module, TrainingModule)
        now = time.monotonic()
        images = pl_module.recipe.data.images_per_batch * trainer.world_size
        rate = torch.tensor(images / max(now - self._since, 1e-9))
        pl_module.log("images/s", rate, prog_bar=True, on_step=True)
        self._since = now

    def on_train_epoch_end(self, *_: Any, **__: Any) -> None:
        """Do not count the evaluation between epochs."""
        self._since = 0.0
