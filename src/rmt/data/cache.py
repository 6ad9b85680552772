"""Decoded training samples kept in memory, for data sets that fit there."""

from __future__ import annotations

import pickle
from collections.abc import Callable

from torch.utils.data import get_worker_info


class Cached:
    """A reading function that keeps what it has read, up to a limit, and reads the rest anew.

    Nothing is ever dropped for something else: in shuffled epochs each sample comes up equally
    often. Each loading process keeps its own share of the limit. Samples are kept pickled, so that
    augmentation gets a copy that it may change, and their size is known.

    Args:
        read: ``read(index)`` -> image, label and the like; what it raises is not kept.
        limit: bytes to keep, over all loading processes of a device.
    """

    def __init__(self, read: Callable[[int], tuple], limit: float) -> None:
        self.read, self.limit = read, limit
        self.kept: dict[int, bytes] = {}
        self.size = 0

    def __call__(self, index: int) -> tuple:
        """Return the sample; raises what ``read`` raises."""
        if index in self.kept:
            return pickle.loads(self.kept[index])
        found = self.read(index)
        content = pickle.dumps(found, pickle.HIGHEST_PROTOCOL)
        workers = get_worker_info()
        if self.size + len(content) <= self.limit / (workers.num_workers if workers else 1):
            self.kept[index] = content
            self.size += len(content)
        return found
