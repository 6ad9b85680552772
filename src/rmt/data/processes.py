"""What several processes of a run know together."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def gathered(values: list[T]) -> list[T]:
    """Return the lists of all processes as one; a list may be empty."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    parts: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]
