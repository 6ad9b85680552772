"""Which sample comes when: an order that depends on nothing but seed, epoch and position.

A run that is killed and resumed, or spread over other processes, sees the same samples with the
same random augmentation, because each sample's randomness is a function of (seed, epoch, index,
copy) and not of the history of a worker process.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

#: What a batch sampler hands to the data set: epoch, index, copy (of repeated augmentation).
Ticket = tuple[int, int, int]


class TrainBatches:
    """Batches of tickets in a fresh order each epoch, cut evenly over the processes.

    Args:
        size: samples in the data set.
        batch: samples a batch and process.
        seed: of the order.
        rank: this process.
        world: number of processes.
        repeats: copies of each sample in an epoch, spread over the processes (repeated
            augmentation, arXiv 1901.09335, as timm samples it: the epoch keeps its length).
    """

    def __init__(
        self,
        size: int,
        batch: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        repeats: int = 1,
    ) -> None:
        if size < 1:
            raise ValueError("the training set is empty")
        self.size, self.batch, self.seed = size, batch, seed
        self.rank, self.world, self.repeats = rank, world, repeats
        self.epoch = 0
        self.start = 0
        # All processes take equally many steps; a set smaller than one batch still makes one.
        if repeats > 1 and size >= 256:
            size = size // 256 * 256
        self.share = max(size // world, 1)
        self.length = max(self.share // batch, 1)

    def __len__(self) -> int:
        return self.length

    @property
    def sampler(self) -> TrainBatches:
        """Return this: Lightning looks for ``set_epoch`` on a batch sampler's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; the loop calls it. A position set by :meth:`resume` is kept once."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def whole_steps(self, accumulate: int) -> None:
        """Leave out batches at the end of an epoch that are too few for an optimizer step."""
        if self.length > accumulate:
            self.length = self.length // accumulate * accumulate

    def resume(self, epoch: int, batches_done: int) -> None:
        """Continue ``epoch`` behind the batches that are done, the next one if these are all."""
        whole = batches_done >= self.length
        self.epoch, self.start = (epoch + 1, 0) if whole else (epoch, batches_done)

    def __iter__(self) -> Iterator[list[Ticket]]:
        generator = torch.Generator().manual_seed(mix(self.seed, self.epoch))
        order = torch.randperm(self.size, generator=generator).repeat_interleave(self.repeats)
        copies = torch.arange(self.repeats).repeat(self.size)
        mine = slice(self.rank, None, self.world)
        order, copies = order[mine][: self.share].tolist(), copies[mine][: self.share].tolist()
        tickets = [(self.epoch, i, c) for i, c in zip(order, copies, strict=True)]
        for step in range(self.start, self.length):
            yield tickets[step * self.batch : (step + 1) * self.batch]


B = TypeVar("B", bound=TrainBatches)


class TestBatches:
    """Batches in order, each sample exactly once over all processes, without padding."""

    __test__ = False  # no pytest class

    def __init__(self, size: int, batch: int, *, rank: int = 0, world: int = 1) -> None:
        self.indices = range(rank, size, world)
        self.batch = batch

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch)

    def __iter__(self) -> Iterator[list[Ticket]]:
        for start in range(0, len(self.indices), self.batch):
            yield [(0, i, 0) for i in self.indices[start : start + self.batch]]


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

    def __getitem__(self, ticket: Ticket) -> Any:
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

    def rehearse(self) -> int:
        """Load the first sample of each part as a run would; return the batches of a training pass.

        Raises:
            ValueError: naming the part and what is wrong. A run may leave out such a sample, up to
                ``data.max_errors``.
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
                "trainer.global_batch or trainer.accumulate"
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
        worker_init_fn=_deaf,
    )


def _deaf(worker: int) -> None:
    """Leave signals to the process that loads: a stop asked of all lets it finish its step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def mix(*numbers: int) -> int:
    """Return one 63-bit seed made of several numbers, such that neighbours differ wholly."""
    words = np.random.SeedSequence([n % 2**32 for n in numbers]).generate_state(2)
    return int(words[0]) << 31 | int(words[1]) >> 1


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Draw from python's, numpy's and torch's CPU generators as seeded; then put them back."""
    seed = mix(*numbers)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        # Not torch.manual_seed: it goes through every device for each sample.
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def seed_all(seed: int) -> None:
    """Seed the global generators of python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
