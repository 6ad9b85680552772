"""Masks between the 28×28 grid of a box and the pixels of an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

_GRID = 28
_THRESHOLD = 0.5


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return each mask laid into its box on an image, (N, h, w), bool.

    The grid is sampled bilinearly at the pixels' centres, zero outside, and cut at 0.5
    (torchvision rounds boxes to whole pixels instead). Only the pixels around the box are
    computed, so a box without area leaves at most a thin stripe.

    Args:
        masks: (N, 28, 28), probabilities.
        boxes: (N, 4), in pixels of the image.
        size: its height and width.
    """
    height, width = size
    boxes = boxes.float()  # in any model, as the release
    out = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    if not len(boxes):
        return out
    low = (boxes[:, :2].floor() - 1).clamp(min=0).int().tolist()
    high = (boxes[:, 2:].ceil() + 1).int().tolist()
    for i, ((x0, y0), (x1, y1)) in enumerate(zip(low, high, strict=True)):
        x1, y1 = min(x1, width), min(y1, height)
        if x0 < x1 and y0 < y1:
            x = _place(x0, x1, boxes[i, 0], boxes[i, 2])
            y = _place(y0, y1, boxes[i, 1], boxes[i, 3])
            grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[None]
            values = F.grid_sample(masks[i, None, None].float(), grid, align_corners=False)
            out[i, y0:y1, x0:x1] = values[0, 0] >= _THRESHOLD
    return out


def targets_of(masks: Tensor, boxes: Tensor, index: Tensor) -> Tensor:
    """Return what the mask head should say in each box, (N, 28, 28) of 0 and 1.

    Args:
        masks: (G, H, W), 0 or 1, of all objects of an image.
        boxes: (N, 4).
        index: (N,), which object each box learns.
    """
    used, row = index.unique(return_inverse=True)
    rois = torch.cat([row[:, None].to(boxes.dtype), boxes], dim=1)
    cut = roi_align(masks[used][:, None].to(boxes.dtype), rois, _GRID, 1.0, 0, aligned=True)
    return (cut[:, 0] >= _THRESHOLD).to(boxes.dtype)


def _place(start: int, stop: int, low: Tensor, high: Tensor) -> Tensor:
    """Return where pixels start..stop lie between ``low`` (-1) and ``high`` (1)."""
    centre = torch.arange(start, stop, device=low.device, dtype=torch.float32) + 0.5
    at = ((centre - low) / (high - low) * 2 - 1).float()
    return at.where(at.isfinite(), 0.0)
