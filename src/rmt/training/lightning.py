"""Everything that touches Lightning's insides: positions in the loop, loaders, checkpoint files."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from rmt.data.loaders import DataModule, ResumableLoader
from rmt.data.samplers import TrainBatches
from rmt.files import write_torch
from rmt.recipes.schema import TrainerConfig

_ADVICE = (
    ".*does not have many workers.*",
    ".*logging interval.*",
    ".*exists and is not empty.*",
    ".*treespec, LeafSpec.*",  # asked by Lightning of torch's pytree
    ".*in eval mode at the start of training.*",  # the EMA network is
    ".*Grad strides do not match.*",  # of depth-wise weights: the copy costs next to nothing
    ".*sync_dist=True.*",  # metrics are summed over the processes before they are logged
)


class LoopData(L.LightningDataModule):
    """The loaders of a task's data for Lightning's loop; they continue where a run stopped.

    Args:
        data: of the task.
    """

    def __init__(self, data: DataModule[Any, Any]) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> ResumableLoader:
        """Return the training loader, at the batch where the run stopped.

        Raises:
            ValueError: if an epoch has too few batches for one step of a run of ``schedule.steps``.
        """
        trainer = _trainer(self)
        loader = self.data.train_loader(rank=trainer.global_rank, world=trainer.world_size)
        batches: Any = loader.batch_sampler
        assert isinstance(batches, TrainBatches)
        accumulate = trainer.accumulate_grad_batches
        batches.whole_steps(accumulate)
        if self.data.recipe.schedule.steps and len(batches) < accumulate:
            raise ValueError(
                f"one step takes {accumulate} batches, but the training split has only "
                f"{len(batches)}: lower trainer.global_batch_size or "
                "trainer.accumulate_grad_batches"
            )
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        batches.resume(trainer.current_epoch, progress.ready)
        return loader

    def val_dataloader(self) -> ResumableLoader:
        """Return the loader of the validation images, which decide on the best weights."""
        return self._eval_loader(self.data.splits.val)

    def test_dataloader(self) -> ResumableLoader:
        """Return the loader of the final evaluation."""
        return self._eval_loader(self.data.splits.evaluated)

    def _eval_loader(self, samples: Any) -> ResumableLoader:
        trainer = _trainer(self)
        return self.data.eval_loader(samples, rank=trainer.global_rank, world=trainer.world_size)


class WholeFiles(TorchCheckpointIO):
    """Write a checkpoint to a temporary file in the same folder, then rename it.

    Lightning writes to the system's temporary folder; a move from another disk can be interrupted
    halfway.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None):
        """Write one file; an existing one stays until the new one is complete."""
        assert storage_options is None
        write_torch(Path(path), checkpoint)


def new_trainer(config: TrainerConfig, **options: Any) -> L.Trainer:
    """Return a Trainer on the recipe's devices.

    Args:
        config: of the recipe.
        **options: of Lightning's Trainer.

    Raises:
        ValueError: if there are no such devices, or Lightning does not know a name.
    """
    try:
        return L.Trainer(
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.num_nodes,
            precision=cast(Any, config.precision),  # Lightning checks the value
            use_distributed_sampler=False,  # our loaders divide the data, without padding
            enable_model_summary=False,
            **options,
        )
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise ValueError(
            f"trainer.accelerator {config.accelerator!r} with trainer.devices {config.devices!r} "
            f"is not available: {' '.join(str(error).split())}"
        ) from error


def batches_started(trainer: L.Trainer) -> int:
    """Return how many training batches the run has begun, before and after interruptions."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready


def batches_per_epoch(trainer: L.Trainer) -> int:
    """Return training batches per epoch and process.

    Not Lightning's ``estimated_stepping_batches``: it fixes the loader's position before a resumed
    run has read its own.
    """
    loop: Any = trainer  # Lightning does not declare what fit() sets
    return len(loop.datamodule.train_dataloader())


def begin_next_epoch_if_whole(trainer: L.Trainer) -> None:
    """Begin a new epoch if the resumed one was complete; Lightning would continue in it.

    This happens in a run whose length is in steps.
    """
    loop = trainer.fit_loop
    batches = loop.epoch_loop.batch_progress.current.ready
    if loop.restarting and batches >= trainer.num_training_batches:
        trackers: list[Any] = [loop.epoch_progress.total, loop.epoch_progress.current]
        for progress in trackers:
            progress.completed = progress.processed
        loop.epoch_loop.restarting = False
        loop.reset_restart_stage()
        loop.epoch_loop.reset_restart_stage()


def evaluate_at_the_end(trainer: L.Trainer) -> None:
    """Let the current epoch end with an evaluation if it is the last; called as it begins."""
    last = trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1
    if last and trainer.check_val_every_n_epoch is not None:
        trainer.check_val_every_n_epoch = 1


def evaluation_follows(trainer: L.Trainer) -> bool:
    """Return whether an evaluation within the epoch may follow the batch that has just ended."""
    loop = trainer.fit_loop.epoch_loop
    return trainer.check_val_every_n_epoch is None and (
        (loop.total_batch_idx + 1) % cast(int, trainer.val_check_batch) == 0
        or trainer.global_step >= trainer.max_steps
    )


def any_process(trainer: L.Trainer, flag: bool) -> bool:
    """Return whether ``flag`` is set in any process."""
    if trainer.world_size > 1:
        return trainer.strategy.reduce_boolean_decision(flag, all=False)
    return flag


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's advice on workers, intervals and products: the recipe decides."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for text in _ADVICE:
                warnings.filterwarnings("ignore", message=text)
            yield
    finally:
        logger.setLevel(level)


def _trainer(module: LoopData) -> L.Trainer:
    assert module.trainer is not None, "Lightning asks for loaders within a run only"
    return module.trainer
