"""What happens to a sample that cannot be read: training replaces it, evaluation leaves it out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch

from rmt.messages import printable

log = logging.getLogger(__name__)
T = TypeVar("T")

#: What a reading function raises, naming the file, if a sample is damaged or gone.
UNREADABLE = (ValueError, FileNotFoundError)


class BadSamples:
    """The samples that cannot be read, each counted and named once, however often it comes up.

    All loading processes of a device share the count; each device has its own, and a resumed run
    starts at none.

    Args:
        count: number of samples.
        most: unreadable samples tolerated, ``data.max_bad_samples``.
    """

    def __init__(self, count: int, most: int) -> None:
        self.most = most
        # One flag per sample, not a number: several processes may find the same one.
        self.flags = torch.zeros(count, dtype=torch.bool).share_memory_()

    def add(self, at: int, error: Exception, *, what: str) -> None:
        """Name a sample in the log, and say what happens to it.

        Raises:
            ValueError: if these are more than ``most``.
        """
        if not self.flags[at]:
            self.flags[at] = True
            log.warning("%s: %s", what, printable(error, limit=2000))
        if self.flags.sum() > self.most:
            raise ValueError(
                f"more than data.max_bad_samples={self.most} samples are unreadable, the last one: "
                f"{error}"
            ) from error


class TrainReader:
    """Read and augment training examples; for an unreadable one the next readable one is taken.

    Args:
        read: ``read(index)`` -> image, label and the like; raises one of :data:`UNREADABLE` if it
            cannot.
        augment: turns them into one training example; what it raises ends the run.
        count: number of samples. Larger indices start over, for samples shown several times.
        max_bad_samples: unreadable samples tolerated.
    """

    def __init__(
        self,
        read: Callable[[int], tuple],
        augment: Callable[..., Any],
        *,
        count: int,
        max_bad_samples: int,
    ) -> None:
        self.read, self.augment, self.count = read, augment, count
        self.bad = BadSamples(count, max_bad_samples)

    def strict(self, index: int) -> Any:
        """Return the training example of this very sample; raises what reading raises."""
        return self.augment(*self.read(index))

    def __call__(self, index: int) -> Any:
        """Return a training example.

        Raises:
            ValueError: beyond ``max_bad_samples``, or if no sample can be read.
        """
        for step in range(self.count):
            at = (index + step) % self.count
            try:
                found = self.read(at)
            except UNREADABLE as error:
                self.bad.add(at, error, what="skipped")
            else:
                return self.augment(*found)
        raise ValueError("no training sample can be read; each is named above")


class EvalReader:
    """Read examples to evaluate; an unreadable one is named in the log and left out.

    Args:
        read: ``read(index)`` -> one example; raises one of :data:`UNREADABLE` if it cannot.
        count: number of samples.
        max_bad_samples: unreadable samples tolerated.
    """

    def __init__(self, read: Callable[[int], Any], *, count: int, max_bad_samples: int) -> None:
        self.read = read
        self.bad = BadSamples(count, max_bad_samples)

    def strict(self, index: int) -> Any:
        """Return an example; raises what reading raises."""
        return self.read(index)

    def __call__(self, index: int) -> Any:
        """Return an example, or None; raises ``ValueError`` beyond ``max_bad_samples``."""
        try:
            return self.read(index)
        except UNREADABLE as error:
            self.bad.add(index, error, what="left out of the evaluation")
            return None


def readable(examples: list) -> list:
    """Return the examples of a batch that could be read; there may be none."""
    return [example for example in examples if example is not None]


def spread_readable(read: Callable[[int], T], count: int, most: int) -> list[tuple[int, T]]:
    """Return index and content of up to ``most`` readable samples, spread evenly over ``count``.

    Raises:
        ValueError: if none can be read.
    """
    found = []
    for stretch in torch.arange(count).tensor_split(most):
        for index in stretch.tolist():
            with suppress(*UNREADABLE):
                found.append((index, read(index)))
                break
    if not found:
        raise ValueError("none of the images can be read")
    return found
