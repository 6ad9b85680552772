"""From samples to batches: seeded loading, and the loaders of a recipe for any task.

A run that is killed and resumed, or spread over other processes, sees the same samples with the
same random augmentation: each sample's randomness is a function of (seed, epoch, index, copy) and
not of the history of a worker process.
"""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar, Generic, TypeVar
from weakref import WeakSet

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from rmt.data.bad_samples import EvalReader, TrainReader, readable
from rmt.data.cache import Cached
from rmt.data.samplers import EvalBatches, SampleKey, TrainBatches
from rmt.data.seeding import seeded
from rmt.data.splits import S, Splits
from rmt.recipes.schema import Recipe

R = TypeVar("R", bound=Recipe)
_TRIES = 5  # samples of which one must be readable for a split to be tried


#: Loading processes of all loaders.
_WORKERS: WeakSet[BaseProcess] = WeakSet()


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

    def __iter__(self) -> Any:
        """Return DataLoader's iterator; its processes are remembered for :func:`kill_workers`."""
        iterator = super().__iter__()
        _WORKERS.update(getattr(iterator, "_workers", ()))
        return iterator

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
        return TrainBatches(
            size, data.images_per_batch, seed=self.recipe.seed, rank=rank, world=world
        )

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

    def describe(self) -> str:
        """Return what was found, in one sentence: format, classes, images, what is left out."""
        return f"data: {self.splits.describe()}"

    def train_loader(self, *, rank: int = 0, world: int = 1) -> ResumableLoader:
        """Return the training loader of one process; its batch sampler is a ``TrainBatches``.

        Raises:
            ValueError: if there is nothing to train on, or a validation split besides the folds.
        """
        samples, data = self.splits.train, self.recipe.data
        if samples is None:
            raise ValueError(
                f"data.root {data.root!r} has no training images, only images to evaluate "
                f"(data.val_fraction is {data.val_fraction})"
            )
        if data.folds and not self.splits.held_out:
            raise ValueError(
                f"data.folds is {data.folds}, but data.root {data.root!r} has a validation split: "
                "put its images with the training images, or set data.folds to 0"
            )
        reader = self.train_reader(samples)
        if data.cache_gb:
            reader.read = Cached(reader.read, data.cache_gb * 2**30)
        return make_loader(
            SeededSamples(samples, reader, seed=self.recipe.seed),
            self.train_batches(samples, rank=rank, world=world),
            num_workers=data.num_workers,
            collate=self.train_collate,
            timeout=data.loader_timeout,
        )

    def eval_loader(self, samples: S, *, rank: int = 0, world: int = 1) -> ResumableLoader:
        """Return a loader of one process that yields each sample once over all, in order."""
        data = self.recipe.data
        size = self.eval_batch_size or data.images_per_batch
        return make_loader(
            SeededSamples(samples, self.eval_reader(samples), seed=0),
            EvalBatches(len(samples), size, rank=rank, world=world),
            num_workers=data.num_workers,
            collate=self.eval_collate,
            timeout=data.loader_timeout,
        )

    def check_first_samples(self) -> int:
        """Load the first sample of each split as a run would; return training batches per epoch.

        One that cannot be used is left out, as a run does, if one of the next few can be.

        Raises:
            ValueError: naming the split, and what is wrong with its first sample.
        """
        train = self.train_loader()
        self._check_first("train", train)
        for split, samples in (("val", self.splits.val), ("test", self.splits.test)):
            if samples is not None:
                self._check_first(split, self.eval_loader(samples))
        return len(train)

    def _check_first(self, split: str, loader: ResumableLoader) -> None:
        samples: Any = loader.dataset  # SeededSamples over a reader
        errors: list[Exception] = []
        for index in range(min(_TRIES, len(samples))):
            try:
                with seeded(self.recipe.seed, 0, index, 0):
                    loader.collate_fn([samples.load.strict(index)])
            except (ValueError, OSError, RuntimeError) as error:
                errors.append(error)
            else:
                for error in errors:
                    kind = "unreadable sample|unreadable samples"
                    self.splits.findings.fault(kind, str(error))
                return
        raise ValueError(
            f"the first sample of the {split!r} split cannot be used: {errors[0]}"
        ) from errors[0]


def make_loader(
    dataset: Dataset,
    batches: TrainBatches | EvalBatches,
    *,
    num_workers: int,
    collate: Callable[[list], Any],
    timeout: float = 0,
) -> ResumableLoader:
    """Return a loader over ``batches``.

    Args:
        dataset: of examples by sample key.
        batches: the keys of each batch.
        num_workers: loading processes; -1 takes the spare cores, at most 16.
        collate: joins the examples of a batch.
        timeout: seconds to wait for a batch of a loading process; 0 waits for ever.
    """
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
        timeout=timeout if num_workers else 0,
    )


@contextmanager
def loading_faults_named() -> Iterator[None]:
    """Say in plain words that a loading process was killed or hangs, and end the others.

    Raises:
        OSError: if one of them does.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not text.startswith(("DataLoader worker", "DataLoader timed out")):
            raise
        kill_workers()
        if "timed out" in text:
            raise OSError(
                f"no batch came from the loading processes for {text.split('after')[-1].strip()}: "
                "does the disk or network answer? Raise data.loader_timeout, or set "
                "data.num_workers to 0 to see where reading stops"
            ) from error
        raise OSError(
            f"a loading process has died ({text.strip().rstrip('.')}); as a rule the machine has "
            "run out of memory: lower data.num_workers or data.batch_size"
        ) from error


def kill_workers() -> None:
    """End all loading processes at once: they ignore gentler signals, and one may hang."""
    for worker in list(_WORKERS):
        if worker.is_alive():
            worker.kill()


def _ignore_signals(worker: int) -> None:
    """Leave signals to the main process: a stop sent to all lets it finish its step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
