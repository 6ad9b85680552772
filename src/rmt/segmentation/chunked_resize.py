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
    """Resize maps to several sizes in turn; yield strips of the last result, from top to bottom.

    Each resize is that of ``torch.nn.functional.interpolate``, bilinear without aligned corners.
    Only the strips are computed, never all rows at once.

    Args:
        maps: (K, h, w).
        sizes: (height, width) after each resize.

    Yields:
        A slice of rows, and the maps in these rows: (K, rows, W).
    """
    height, width = sizes[-1]
    step = max(1, STRIP // (len(maps) * width))
    for first in range(0, height, step):
        last = min(first + step, height)
        yield slice(first, last), _rows(maps, sizes, first, last)


def _rows(maps: Tensor, sizes: Sequence[Size], first: int, last: int) -> Tensor:
    """Return rows ``first`` to ``last`` of the maps at the last of ``sizes``."""
    if not sizes:
        # Contiguous: planes at distances of a power of two compete for the same cache lines.
        return maps[:, first:last].contiguous()
    *before, (height, width) = sizes
    below = before[-1][0] if before else maps.shape[1]
    if below == height:
        part = _rows(maps, before, first, last)
    else:
        # On the CPU, so that computing the rows does not wait for the accelerator.
        at = torch.arange(first, last, device="cpu", dtype=torch.float64)
        at = ((at + 0.5) * (below / height) - 0.5).clamp(min=0)
        upper = at.long()
        lower = (upper + 1).clamp(max=below - 1)
        start = int(upper[0])
        source = _rows(maps, before, start, int(lower[-1]) + 1)
        weight = (at - upper).to(maps.dtype).to(maps.device)[:, None]
        part = torch.lerp(source[:, upper - start], source[:, lower - start], weight)
    return resize(part[None], (last - first, width))[0]
