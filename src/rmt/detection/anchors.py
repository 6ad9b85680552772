"""Anchors: reference boxes on a regular grid, and which of them an image is trained on.

As in the release, the centre of cell (i, j) is (j·stride, i·stride), without an offset of half a
stride, and the base boxes are not rounded (torchvision rounds them to whole pixels). Anchors are
float32, whatever the dtype of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AnchorGrid:
    """The anchors of all pyramid levels.

    Attributes:
        strides: pixels between neighbouring cells of each level, which is also the base size.
        scales: factors on the base size.
        ratios: height divided by width.
    """

    strides: tuple[int, ...]
    scales: tuple[float, ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)

    @property
    def per_cell(self) -> int:
        """Return A, the anchors per cell; channel a·K + k of a head is anchor a, class k."""
        return len(self.scales) * len(self.ratios)

    def base(self, stride: int, device: torch.device | None = None) -> Tensor:
        """Return the anchors of the cell at the origin, (A, 4): ratios, then scales of each."""
        ratios = torch.tensor(self.ratios, device=device).sqrt()
        scales = torch.tensor(self.scales, device=device)
        width = (stride * (1 / ratios)[:, None] * scales).flatten() * 0.5
        height = (stride * ratios[:, None] * scales).flatten() * 0.5
        return torch.stack([-width, -height, width, height], dim=1)

    def __call__(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the anchors of each level, (H·W·A, 4), ordered by row, column, anchor of the cell.

        Args:
            maps: one tensor (B, C, H, W) per level; only size and device are used.
        """
        return [self._level(map_, stride) for map_, stride in zip(maps, self.strides, strict=True)]

    def _level(self, map_: Tensor, stride: int) -> Tensor:
        (height, width), device = map_.shape[2:], map_.device
        y = torch.arange(height, device=device, dtype=torch.float32) * stride
        x = torch.arange(width, device=device, dtype=torch.float32) * stride
        y, x = torch.meshgrid(y, x, indexing="ij")
        shifts = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        return (shifts + self.base(stride, device)).flatten(0, 1)

    def usable(
        self,
        maps: Sequence[Tensor],
        *,
        padded: tuple[int, int],
        size: tuple[int, int],
        inside: bool,
    ) -> Tensor:
        """Return which anchors of all levels an image is trained on, (N,), bool.

        Args:
            maps: as in a call.
            padded: height and width of the image with its own padding; the batch's may be larger.
            size: height and width without padding.
            inside: leave out anchors that cross the border of ``size``.
        """
        flags = []
        for map_, stride in zip(maps, self.strides, strict=True):
            height, width = map_.shape[2:]
            y = torch.arange(height, device=map_.device) < -(-padded[0] // stride)
            x = torch.arange(width, device=map_.device) < -(-padded[1] // stride)
            flags.append((y[:, None] & x).flatten().repeat_interleave(self.per_cell))
        usable = torch.cat(flags)
        if inside:
            x1, y1, x2, y2 = torch.cat(self(maps)).unbind(1)
            usable &= (x1 >= 0) & (y1 >= 0) & (x2 < size[1]) & (y2 < size[0])
        return usable


def by_anchor(map_: Tensor, per_cell: int) -> Tensor:
    """Return a map of a head, (B, A·K, H, W), as K values for each anchor, (B, H·W·A, K)."""
    batch, channels = map_.shape[:2]
    return map_.permute(0, 2, 3, 1).reshape(batch, -1, channels // per_cell)
