"""Which sample comes when: an order that depends on nothing but seed, epoch and position.

A run that is killed and resumed, or spread over other processes, sees the same samples with the
same random augmentation, because each sample's randomness is a function of (seed, epoch, index,
copy) and not of the history of a worker process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sized
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from rmt.data.samplers import B, SampleKey, TestBatches, TrainBatches
from rmt.data.seeding import seeded


class SeededSamples(Dataset):
    """A data set whose random transforms depend on the ticket alone.

    Args:
        samples: anything with a length.
        load: ``load(index)`` -> one training example, drawing from the global generators.
        seed: of the run.
    """

    def __init__(self, samples: Sized, load: Callable[[int], Any], *, seed: int) -> None:
        self.samples, self.load, self.seed = samples, load, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, ticket: SampleKey) -> Any:
        epoch, index, copy = ticket
        with seeded(self.seed, epoch, index, copy):
            return self.load(index)


class ResumableLoader(DataLoader):
    """A DataLoader that tells the loop it can continue within an epoch.

    Its position is not stored here, where prefetching makes it run ahead: the batch sampler gets
    it from the loop's own count of finished batches.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: see the class."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing: see the class."""


class TaskData(L.LightningDataModule):
    """The loaders of a recipe. A task says what a training batch and a judged one are.

    Args:
        recipe: of the task.
        splits: with the parts ``train``, ``val`` and ``test``, which may be None.
    """

    recipe: Any  # the task's kind of Recipe
    splits: Any  # and of data

    def __init__(self, recipe: Any, splits: Any) -> None:
        super().__init__()
        self.recipe = recipe
        self.splits = splits

    def exact(self, samples: Any) -> ResumableLoader:
        """Return a loader that shows each sample once over all processes, in order."""
        raise NotImplementedError

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names, which all parts share."""
        return self.splits.val.classes

    def judged(self) -> Any:
        """Return the test part, or the validation part if that is the test."""
        return self.splits.test or self.splits.val

    def val_dataloader(self) -> ResumableLoader:
        """Return the loader that chooses the best weights."""
        return self.exact(self.splits.val)

    def test_dataloader(self) -> ResumableLoader:
        """Return the loader of what is judged at the end."""
        return self.exact(self.judged())

    def check_first_samples(self) -> int:
        """Load the first sample of each part as a run would; return the batches of a training pass.

        Raises:
            ValueError: naming the part and what is wrong. A run may leave out such a sample, up to
                ``data.max_bad_samples``.
        """
        train = self.train_dataloader()
        loaders = {"train": train, "val": self.val_dataloader(), "test": self.test_dataloader()}
        for part, loader in loaders.items():
            samples: Any = loader.dataset  # SeededSamples over a reader
            try:
                with seeded(self.recipe.seed, 0, 0, 0):
                    loader.collate_fn([samples.load.strict(0)])
            except (ValueError, OSError, RuntimeError) as error:
                raise ValueError(f"the first sample of {part!r} cannot be used: {error}") from error
        return len(train)

    def place(self) -> dict[str, int]:
        """Return which process this is, of how many; without a loop, the only one."""
        if self.trainer is None:
            return {"rank": 0, "world": 1}
        return {"rank": self.trainer.global_rank, "world": self.trainer.world_size}

    def continued(self, batches: B) -> B:
        """Return training batches, of whole steps, set to where an interrupted run stopped.

        Without a loop they stay as they are.

        Raises:
            ValueError: if an epoch is too short for a step of a run that is counted in steps.
        """
        if self.trainer is None:
            return batches
        accumulate = self.trainer.accumulate_grad_batches
        batches.whole_steps(accumulate)
        if self.recipe.schedule.steps and len(batches) < accumulate:
            raise ValueError(
                f"a step takes {accumulate} batches and all data make {len(batches)}: lower "
                "trainer.global_batch_size or trainer.accumulate_grad_batches"
            )
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.current
        batches.resume(self.trainer.current_epoch, progress.ready)
        return batches


def make_loader(
    dataset: Dataset,
    batches: TrainBatches | TestBatches,
    *,
    workers: int,
    collate: Callable | None = None,
) -> ResumableLoader:
    """Return a loader over ``batches``; -1 workers take the spare cores, at most 16."""
    if workers < 0:
        workers = min(16, max(0, (os.cpu_count() or 1) - 1))
    return ResumableLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=_ignore_signals,
    )


def _ignore_signals(worker: int) -> None:
    """Leave signals to the process that loads: a stop asked of all lets it finish its step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
