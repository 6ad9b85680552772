"""Masks: from the 28×28 grid of a box to the pixels of an image, and back for targets."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

_GRID = 28
_THRESHOLD = 0.5


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return each mask pasted into its box on an image, (N, h, w), bool.

    The grid is sampled bilinearly at the centres of the pixels, with zeros outside, and thresholded
    at 0.5; torchvision rounds boxes to whole pixels instead. Only the pixels around the box are
    computed, so a box without area gives at most a thin stripe.

    Args:
        masks: (N, 28, 28), probabilities.
        boxes: (N, 4), in pixels of the image.
        size: height and width of the image.
    """
    height, width = size
    boxes = boxes.float()  # whatever the dtype of the model, as in the release
    out = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    if not len(boxes):
        return out
    low = (boxes[:, :2].floor() - 1).clamp(min=0).int().tolist()
    high = (boxes[:, 2:].ceil() + 1).int().tolist()
    for i, ((x0, y0), (x1, y1)) in enumerate(zip(low, high, strict=True)):
        x1, y1 = min(x1, width), min(y1, height)
        if x0 < x1 and y0 < y1:
            x = _coordinates(x0, x1, boxes[i, 0], boxes[i, 2])
            y = _coordinates(y0, y1, boxes[i, 1], boxes[i, 3])
            grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[None]
            values = F.grid_sample(masks[i, None, None].float(), grid, align_corners=False)
            out[i, y0:y1, x0:x1] = values[0, 0] >= _THRESHOLD
    return out


def mask_targets(masks: Tensor, boxes: Tensor, index: Tensor) -> Tensor:
    """Return the targets of the mask head for each box, (N, 28, 28), 0 or 1.

    Args:
        masks: (G, H, W), 0 or 1, of all objects of an image.
        boxes: (N, 4), in the same pixels.
        index: (N,), the object that each box is assigned to.
    """
    used, row = index.unique(return_inverse=True)
    rois = torch.cat([row[:, None].to(boxes.dtype), boxes], dim=1)
    cut = roi_align(masks[used][:, None].to(boxes.dtype), rois, _GRID, 1.0, 0, aligned=True)
    return (cut[:, 0] >= _THRESHOLD).to(boxes.dtype)


def _coordinates(start: int, stop: int, low: Tensor, high: Tensor) -> Tensor:
    """Return the centres of pixels start..stop, as coordinates that are -1 at low, 1 at high."""
    centre = torch.arange(start, stop, device=low.device, dtype=torch.float32) + 0.5
    at = ((centre - low) / (high - low) * 2 - 1).float()
    return at.where(at.isfinite(), 0.0)
