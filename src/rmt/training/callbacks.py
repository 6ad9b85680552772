"""What the training loop does besides training: checkpoints, signals, throughput, progress."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, RichProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO

from rmt.files import write_atomically
from rmt.training.module import Engine

_ADVICE = (
    ".*does not have many workers.*",
    ".*logging interval.*",
    ".*exists and is not empty.*",
    ".*treespec, LeafSpec.*",  # asked by Lightning of torch's pytree
    ".*in eval mode at the start of training.*",  # the weight average is
    ".*Grad strides do not match.*",  # of depth-wise weights: the copy costs nothing to speak of
    ".*sync_dist=True.*",  # metrics are summed over the processes before they are logged
)


class Interrupted(Exception):  # noqa: N818 (a request, not an error)
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


class WholeFiles(TorchCheckpointIO):
    """Write a checkpoint beside its place, then move it there in one step.

    Lightning's own writer goes through the system's temporary folder, and a move from another
    disk can be cut in the middle.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None):
        """Write one file; the one that was there stays until the new one is whole."""
        assert storage_options is None
        write_atomically(Path(path), lambda temporary: torch.save(checkpoint, temporary))


class KeepLast(Checkpoint):
    """Keep the state of the run in one file, and stop cleanly on a signal.

    The file is written at each epoch's end, behind each evaluation within an epoch, every
    ``every`` steps if that is not 0, and when Ctrl-C or SIGTERM asks for a stop. It is written
    only where a resumed run can take up the thread exactly: between two optimizer steps with no
    evaluation between them, or at an epoch's end; a write that falls elsewhere waits. A second
    Ctrl-C stops at once.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self.asked: int | None = None
        self._due = False
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a new epoch if the resumed one was whole; listen for the two signals."""
        loop = trainer.fit_loop
        batches = loop.epoch_loop.batch_progress.current.ready
        if loop.restarting and batches >= trainer.num_training_batches:
            # A run counted in steps: Lightning would go on in the epoch that is over.
            trackers: list[Any] = [loop.epoch_progress.total, loop.epoch_progress.current]
            for progress in trackers:
                progress.completed = progress.processed
            loop.epoch_loop.restarting = False
            loop.reset_restart_stage()
            loop.epoch_loop.reset_restart_stage()
        if any(stop.wait_count >= stop.patience for stop in trainer.early_stopping_callbacks):
            trainer.should_stop = True  # it had stopped before it was cut off
        # In place of Lightning, which would not finish the step.
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Give the signals back."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    on_exception = on_train_end

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, at: int
    ) -> None:
        """Save where the interval says so; stop if asked, on all processes in the same step."""
        asked = self._all_asked(trainer)
        stepped = (at + 1) % trainer.accumulate_grad_batches == 0
        if self.every and stepped and trainer.global_step % self.every == 0:
            self._due = True
        # Within an epoch counted in steps, an evaluation may follow this very batch.
        loop = trainer.fit_loop.epoch_loop
        judged = trainer.check_val_every_n_epoch is None and (
            (loop.total_batch_idx + 1) % cast(int, trainer.val_check_batch) == 0
            or trainer.global_step >= trainer.max_steps
        )
        if (asked or self._due) and stepped and not judged and not trainer.is_last_batch:
            self._save(trainer, asked)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember to save behind an evaluation."""
        self._due = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save behind an epoch."""
        self._save(trainer, self._all_asked(trainer))

    def _save(self, trainer: L.Trainer, asked: bool) -> None:
        trainer.save_checkpoint(self.path)  # with the state of optimizer, schedule and loop
        self._due = False
        if asked:
            raise Interrupted(self.asked or signal.SIGTERM, self.path)

    def _all_asked(self, trainer: L.Trainer) -> bool:
        asked = self.asked is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        return asked

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number


class Throughput(Callback):
    """Log training images a second over all devices."""

    def __init__(self) -> None:
        self._since = 0.0

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        """Start the clock with the first batch."""
        self._since = self._since or time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Engine, *_: Any, **__: Any) -> None:
        """Log images over the time since the last batch's end, loading included."""
        now = time.monotonic()
        images = pl_module.recipe.data.batch_size * trainer.world_size
        rate = torch.tensor(images / max(now - self._since, 1e-9))
        pl_module.log("images/s", rate, prog_bar=True, on_step=True)
        self._since = now

    def on_train_epoch_end(self, *_: Any, **__: Any) -> None:
        """Do not count the evaluation between epochs."""
        self._since = 0.0


class Progress(RichProgressBar):
    """Lightning's bar with loss, accuracy, images/s and the time left, and no version number."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return what is shown behind the bar."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return shown


@contextmanager
def quiet() -> Iterator[None]:
    """Drop Lightning's advice on workers, intervals and products: a recipe decides these."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for text in _ADVICE:
                warnings.filterwarnings("ignore", message=text)
            yield
    finally:
        logger.setLevel(level)
