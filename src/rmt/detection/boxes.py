"""Boxes as functions of tensors: coding, clipping, overlap, non-maximum suppression.

Boxes are (..., 4) as x1, y1, x2, y2 in pixels; the width is x2 - x1. Docstrings say where the
release differs from torchvision's own detectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou, nms

# A predicted side is at most 62.5 times as long as that of the anchor, and at least 1/62.5.
_MAX_LOG_RATIO = abs(math.log(16 / 1000))
# From this many boxes, suppression runs class by class: its cost grows with their square.
_ONE_CALL = 10_000


def encode(boxes: Tensor, targets: Tensor, stds: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """Return the deltas (dx, dy, dw, dh) from ``boxes`` to ``targets``, (N, 4).

    Always in float32, as the release encodes its training targets.

    Args:
        boxes: (N, 4), anchors or proposals.
        targets: (N, 4).
        stds: the deltas are divided by them.
    """
    boxes, targets = boxes.float(), targets.float()
    size, target_size = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shift = ((targets[:, :2] + targets[:, 2:]) * 0.5 - (boxes[:, :2] + boxes[:, 2:]) * 0.5) / size
    return torch.cat([shift, (target_size / size).log()], dim=1) / boxes.new_tensor(stds)


def decode(boxes: Tensor, deltas: Tensor, stds: Sequence[float] = (1, 1, 1, 1)) -> Tensor:
    """Return ``boxes`` shifted and scaled by ``deltas``, (..., 4); the inverse of :func:`encode`.

    The log ratios are clamped on both sides (torchvision: from above only), the shifts are not.

    Args:
        boxes: (..., 4), broadcast against ``deltas``.
        deltas: (..., 4).
        stds: the deltas are multiplied by them.
    """
    deltas = deltas * deltas.new_tensor(stds)
    size = boxes[..., 2:] - boxes[..., :2]
    centre = (boxes[..., :2] + boxes[..., 2:]) * 0.5 + size * deltas[..., :2]
    half = size * deltas[..., 2:].clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO).exp() * 0.5
    return torch.cat([centre - half, centre + half], dim=-1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Return boxes clipped to their images; a box outside is kept, without area.

    Args:
        boxes: (..., 4).
        sizes: (..., 2), height and width of each box's image, broadcast against ``boxes``.
    """
    limits = torch.cat([sizes, sizes], dim=-1).flip(-1)
    return boxes.clamp(min=0).minimum(limits.to(boxes.dtype))


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Return the IoU of each pair of boxes, (N, M); 0 if neither has an area."""
    return box_iou(boxes, others).nan_to_num(nan=0.0)


def giou_loss(boxes: Tensor, targets: Tensor, eps: float = 1e-6) -> Tensor:
    """Return 1 - GIoU (arXiv 1902.09630) of boxes (N, 4) and their targets, (N,).

    Denominators are at least ``eps``; torchvision adds it to them instead.
    """
    shared = _area(boxes[:, :2].maximum(targets[:, :2]), boxes[:, 2:].minimum(targets[:, 2:]))
    hull = _area(boxes[:, :2].minimum(targets[:, :2]), boxes[:, 2:].maximum(targets[:, 2:]))
    union = (box_area(boxes) + box_area(targets) - shared).clamp(min=eps)
    hull = hull.clamp(min=eps)
    return 1 - (shared / union - (hull - union) / hull)


def nms_by_class(boxes: Tensor, scores: Tensor, classes: Tensor, *, iou: float) -> Tensor:
    """Return the indices that non-maximum suppression keeps, per class, best score first.

    A box is suppressed if its IoU with a better one of its class is above ``iou``. The boxes of
    each class are shifted to a separate region, in the dtype of the boxes, as in the release.

    Args:
        boxes: (N, 4).
        scores: (N,).
        classes: (N,), any integers, such as labels or pyramid levels.
        iou: threshold.
    """
    if torch.compiler.is_compiling():  # a graph cannot branch on the number of boxes
        largest = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max()
    elif len(boxes):
        largest = boxes.max()
    else:
        return classes.new_zeros(0)
    shifted = boxes + (classes.to(boxes.dtype) * (largest + 1))[:, None]
    if torch.compiler.is_compiling() or len(boxes) < _ONE_CALL:
        return nms(shifted, scores, iou)
    members = [(classes == c).nonzero()[:, 0] for c in classes.unique()]
    keep = torch.cat([own[nms(shifted[own], scores[own], iou)] for own in members]).sort().values
    return keep[scores[keep].argsort(descending=True, stable=True)]


def multiclass_nms(
    boxes: Tensor, scores: Tensor, *, threshold: float, iou: float, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best boxes over all classes: (n, 4), their scores (n,) and labels (n,).

    Each pair of a box and a class with a score above ``threshold`` is one candidate. There is no
    other filter: boxes without area are candidates too.

    Args:
        boxes: (N, 4), or (N, K, 4) if each class has its own.
        scores: (N, K).
        threshold: candidates must score above it.
        iou: threshold of the suppression.
        limit: largest number of boxes to return.
    """
    rows, labels = (scores > threshold).nonzero(as_tuple=True)
    boxes = boxes[rows] if boxes.ndim == 2 else boxes[rows, labels]
    scores = scores[rows, labels]
    keep = nms_by_class(boxes, scores, labels, iou=iou)[:limit]
    return boxes[keep], scores[keep], labels[keep]


def _area(low: Tensor, high: Tensor) -> Tensor:
    size = (high - low).clamp(min=0)
    return size[:, 0] * size[:, 1]
