"""Which sample comes when: an order that depends on seed, epoch and position alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rmt.data.seeding import derive_seed

#: What a batch sampler hands to the data set: epoch, index, copy (of repeated augmentation).
SampleKey = tuple[int, int, int]


class TrainBatches:
    """Batches of sample keys in a new order each epoch, divided evenly among the processes.

    Args:
        size: samples in the data set.
        batch_size: samples per batch and process.
        seed: of the order.
        rank: this process.
        world: number of processes.
        repeats: copies of each sample in an epoch, spread over the processes (repeated
            augmentation, arXiv 1901.09335, as timm samples it: the epoch keeps its length).
        weights: (size,) how often each sample comes, relative to others: then each place of an
            epoch is drawn anew, with replacement. None for each sample once.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        repeats: int = 1,
        weights: Tensor | None = None,
    ) -> None:
        if size < 1:
            raise ValueError("the training split is empty")
        self.weights = weights
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world, self.repeats = rank, world, repeats
        self.epoch = 0
        self.start = 0
        # All processes take equally many steps; a set smaller than one batch still makes one.
        if repeats > 1 and size >= 256:
            size = size // 256 * 256
        self.share = max(size // world, 1)
        self.length = max(self.share // batch_size, 1)

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
        """Continue ``epoch`` after the batches that are done; the next one if these are all."""
        whole = batches_done >= self.length
        self.epoch, self.start = (epoch + 1, 0) if whole else (epoch, batches_done)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.size, generator=generator)
            copies = torch.zeros_like(order)
        else:
            order = torch.multinomial(self.weights, self.size, True, generator=generator)
            copies = times_before(order)
        order = order.repeat_interleave(self.repeats)
        copies = copies.repeat_interleave(self.repeats) * self.repeats
        copies += torch.arange(self.repeats).repeat(self.size)
        mine = slice(self.rank, None, self.world)
        order, copies = order[mine][: self.share].tolist(), copies[mine][: self.share].tolist()
        keys = [(self.epoch, i, c) for i, c in zip(order, copies, strict=True)]
        for step in range(self.start, self.length):
            yield keys[step * self.batch_size : (step + 1) * self.batch_size]


def times_before(order: Tensor) -> Tensor:
    """Return for each entry of a list of indices how often it has come before."""
    ranked = order.argsort(stable=True)
    first = torch.searchsorted(order[ranked], order[ranked])  # where the run of equal ones begins
    before = torch.empty_like(order)
    before[ranked] = torch.arange(len(order)) - first
    return before


class GroupedBatches(TrainBatches):
    """Training batches of landscape images only, or of portrait ones only; the last may be mixed.

    Args:
        portrait: whether each sample is taller than wide.
        batch_size: samples per batch and process.
        seed: of the order.
        rank: this process.
        world: number of processes.
    """

    def __init__(
        self,
        portrait: Sequence[bool],
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__(len(portrait), batch_size, seed=seed, rank=rank, world=world)
        self.portrait = portrait

    def __iter__(self) -> Iterator[list[SampleKey]]:
        start, self.start = self.start, 0
        mine = [key for batch in super().__iter__() for key in batch]
        self.start = start
        waiting: dict[bool, list[SampleKey]] = {False: [], True: []}
        batches = []
        for key in mine:
            group = waiting[self.portrait[key[1]]]
            group.append(key)
            if len(group) == self.batch_size:
                batches.append(list(group))
                group.clear()
        rest = waiting[False] + waiting[True]
        size = self.batch_size
        batches += [rest[i : i + size] for i in range(0, len(rest), size)]
        yield from batches[start:]


class EvalBatches:
    """Batches in order, each sample exactly once over all processes, without padding.

    Args:
        size: samples in the data set.
        batch_size: samples per batch.
        rank: this process.
        world: number of processes.
    """

    def __init__(self, size: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        self.indices = range(rank, size, world)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, i, 0) for i in self.indices[start : start + self.batch_size]]
