"""Which sample comes when: an order that depends on seed, epoch and position alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch

from rmt.data.seeding import derive_seed

#: What a batch sampler hands to the data set: epoch, index, copy (of repeated augmentation).
SampleKey = tuple[int, int, int]


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

    def __iter__(self) -> Iterator[list[SampleKey]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
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

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for start in range(0, len(self.indices), self.batch):
            yield [(0, i, 0) for i in self.indices[start : start + self.batch]]
