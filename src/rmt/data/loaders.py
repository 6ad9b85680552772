"""From samples to batches: seeded loading, and the loaders of a recipe for any task.

A run that is killed and resumed, or spread over other processes, sees the same samples with the
same random augmentation: each sample's randomness is a function of (seed, epoch, index, copy) and
not of the history of a worker process.
"""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Sized
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from rmt.data.bad_samples import EvalReader, TrainReader, readable
from rmt.data.samplers import EvalBatches, SampleKey, TrainBatches
from rmt.data.seeding import seeded
from rmt.data.splits import S, Splits
from rmt.recipes.schema import Recipe

R = TypeVar("R", bound=Recipe)


class SeededSamples(Dataset):
    """A data set whose random transforms depend on the sample key alone.

    Args:
        samples: anything with a length.
        load: ``load(index)`` -> one example, drawing from the global generators.
        seed: of the run.
    """

    def __init__(self, samples: Sized, load: Callable[[int], Any], *, seed: int) -> None:
        self.samples, self.load, self.seed = samples, load, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: SampleKey) -> Any:
        epoch, index, copy = key
        with seeded(self.seed, epoch, index, copy):
            return self.load(index)


class ResumableLoader(DataLoader):
    """A DataLoader that tells Lightning it can continue within an epoch.

    Its position is not stored here, where prefetching makes it run ahead: the batch sampler gets
    it from the loop's own count of finished batches.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: see the class."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing: see the class."""


class DataModule(ABC, Generic[R, S]):
    """The loaders of a recipe; a task says how an example is read and augmented.

    Args:
        recipe: of the task.
        splits: of its data set.
    """

    #: Images per evaluation batch; None takes ``data.batch_size``. Images of any size come singly.
    eval_batch_size: ClassVar[int | None] = None

    def __init__(self, recipe: R, splits: Splits[S]) -> None:
        self.recipe = recipe
        self.splits = splits

    @abstractmethod
    def train_reader(self, samples: S) -> TrainReader:
        """Return what reads and augments one training example."""

    @abstractmethod
    def eval_reader(self, samples: S) -> EvalReader:
        """Return what reads one example of an evaluation."""

    def train_batches(self, samples: S, *, rank: int, world: int) -> TrainBatches:
        """Return the order of the training samples; each image ``data.repeats`` times per epoch."""
        data = self.recipe.data
        size = len(samples) * data.repeats
        return TrainBatches(size, data.batch_size, seed=self.recipe.seed, rank=rank, world=world)

    def train_collate(self, examples: list) -> Any:
        """Join the examples of a training batch."""
        return default_collate(examples)

    def eval_collate(self, examples: list) -> Any:
        """Join the readable examples of an evaluation batch; it may be empty."""
        return readable(examples)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, which all splits share."""
        return self.splits.classes

    def train_loader(self, *, rank: int = 0, world: int = 1) -> ResumableLoader:
        """Return the training loader of one process; its batch sampler is a ``TrainBatches``.

        Raises:
            ValueError: if there is nothing to train on.
        """
        samples, data = self.splits.train, self.recipe.data
        if samples is None:
            raise ValueError(
                f"data.root {data.root!r} has no training images, only images to evaluate "
                f"(data.val_fraction is {data.val_fraction})"
            )
        return make_loader(
            SeededSamples(samples, self.train_reader(samples), seed=self.recipe.seed),
            self.train_batches(samples, rank=rank, world=world),
            num_workers=data.num_workers,
            collate=self.train_collate,
        )

    def eval_loader(self, samples: S, *, rank: int = 0, world: int = 1) -> ResumableLoader:
        """Return a loader of one process that yields each sample once over all, in order."""
        data = self.recipe.data
        size = self.eval_batch_size or data.batch_size
        return make_loader(
            SeededSamples(samples, self.eval_reader(samples), seed=0),
            EvalBatches(len(samples), size, rank=rank, world=world),
            num_workers=data.num_workers,
            collate=self.eval_collate,
        )

    def check_first_samples(self) -> int:
        """Load the first sample of each split as a run would; return training batches per epoch.

        Raises:
            ValueError: naming the split and what is wrong. A run may leave out such a sample, up
                to ``data.max_bad_samples``.
        """
        train = self.train_loader()
        val, test = (self.eval_loader(s) for s in (self.splits.val, self.splits.evaluated))
        for split, loader in (("train", train), ("val", val), ("test", test)):
            samples: Any = loader.dataset  # SeededSamples over a reader
            try:
                with seeded(self.recipe.seed, 0, 0, 0):
                    loader.collate_fn([samples.load.strict(0)])
            except (ValueError, OSError, RuntimeError) as error:
                raise ValueError(
                    f"the first sample of the {split!r} split cannot be used: {error}"
                ) from error
        return len(train)


def make_loader(
    dataset: Dataset,
    batches: TrainBatches | EvalBatches,
    *,
    num_workers: int,
    collate: Callable[[list], Any],
) -> ResumableLoader:
    """Return a loader over ``batches``; -1 workers take the spare cores, at most 16."""
    if num_workers < 0:
        num_workers = min(16, max(0, (os.cpu_count() or 1) - 1))
    return ResumableLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        worker_init_fn=_ignore_signals,
    )


def _ignore_signals(worker: int) -> None:
    """Leave signals to the main process: a stop sent to all lets it finish its step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
