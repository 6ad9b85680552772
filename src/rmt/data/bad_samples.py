"""What happens to a sample that cannot be read: training replaces it, judging leaves it out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch

log = logging.getLogger(__name__)
T = TypeVar("T")

#: What a reading function raises, naming the file, if a sample is damaged or gone.
UNREADABLE = (ValueError, FileNotFoundError)


class BadSamples:
    """A count of the samples that cannot be read, each once, however often it comes up.

    The count is common to all loading processes of a device, which share it in memory; several
    devices count each for itself, and a resumed run begins anew.

    Args:
        count: of the samples.
        most: unreadable samples tolerated, ``data.max_bad_samples``.
    """

    def __init__(self, count: int, most: int) -> None:
        self.most = most
        # A flag a sample rather than a number: a process may set one that is set already.
        self.flags = torch.zeros(count, dtype=torch.bool).share_memory_()

    def add(self, at: int, error: Exception, *, what: str) -> None:
        """Name a sample in the log and say what becomes of it.

        Raises:
            ValueError: if these are more than ``most``.
        """
        if not self.flags[at]:
            self.flags[at] = True
            log.warning("%s: %s", what, error)
        if self.flags.sum() > self.most:
            raise ValueError(
                f"more than data.max_bad_samples={self.most} samples are unreadable, the last one: "
                f"{error}"
            ) from error


class TrainReader:
    """Read and vary training examples; for an unreadable sample the next readable one stands in.

    Args:
        read: ``read(index)`` -> the parts of a sample; what it raises of :data:`UNREADABLE` counts.
        vary: the parts of a sample -> one training example; what it raises is an error of the run.
        count: of the samples. Indices beyond it begin anew, for samples shown several times.
        max_bad_samples: unreadable samples tolerated.
    """

    def __init__(
        self,
        read: Callable[[int], tuple],
        vary: Callable[..., Any],
        *,
        count: int,
        max_bad_samples: int,
    ) -> None:
        self.read, self.vary, self.count = read, vary, count
        self.bad = BadSamples(count, max_bad_samples)

    def strict(self, index: int) -> Any:
        """Return the training example of this very sample; raises what reading raises."""
        return self.vary(*self.read(index))

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
                return self.vary(*found)
        raise ValueError("no training sample can be read; each is named above")


class EvalReader:
    """Read examples to be judged; an unreadable one is named in the log and left out.

    Args:
        read: ``read(index)`` -> one example; raises one of :data:`UNREADABLE` if it cannot.
        count: of the samples.
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
