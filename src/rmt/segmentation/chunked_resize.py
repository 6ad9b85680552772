"""Bilinear resizing of many maps, one strip of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rmt.segmentation.blocks import resize

Size = tuple[int, int]
#: Elements of one strip: 8 MB in float32.
STRIP = 2**21


def strips(maps: Tensor, sizes: Sequence[Size]) -> Iterator[tuple[slice, Tensor]]:
    """Resize maps to one size after the other; yield the last one's rows, from top to bottom.

    Each step is the bilinear one of ``torch.nn.functional.interpolate``, corners not aligned. No
    size but the first is ever held as a whole.

    Args:
        maps: (K, h, w).
        sizes: (height, width) of each step.

    Yields:
        A slice of rows, and the maps there: (K, rows, W).
    """
    height, width = sizes[-1]
    step = max(1, STRIP // (len(maps) * width))
    for first in range(0, height, step):
        last = min(first + step, height)
        yield slice(first, last), _rows(maps, sizes, first, last)


def _rows(maps: Tensor, sizes: Sequence[Size], first: int, last: int) -> Tensor:
    """Return rows ``first`` to ``last`` of the maps at the last of the sizes."""
    if not sizes:
        # In one piece: planes that lie a power of two apart share few places of a cache.
        return maps[:, first:last].contiguous()
    *before, (height, width) = sizes
    below = before[-1][0] if before else maps.shape[1]
    if below == height:
        part = _rows(maps, before, first, last)
    else:
        # On the CPU: an accelerator is not waited for to tell which rows are needed.
        at = torch.arange(first, last, device="cpu", dtype=torch.float64)
        at = ((at + 0.5) * (below / height) - 0.5).clamp(min=0)
        upper = at.long()
        lower = (upper + 1).clamp(max=below - 1)
        start = int(upper[0])
        source = _rows(maps, before, start, int(lower[-1]) + 1)
        share = (at - upper).to(maps.dtype).to(maps.device)[:, None]
        part = torch.lerp(source[:, upper - start], source[:, lower - start], share)
    return resize(part[None], (last - first, width))[0]
