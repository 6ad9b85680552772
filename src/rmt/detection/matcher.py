"""Assignment of boxes to objects by IoU, and random sampling of boxes for training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmt.detection.boxes import overlaps

#: Values in an assignment that are not indices of objects.
BACKGROUND, IGNORED = -1, -2


@dataclass(frozen=True)
class Matcher:
    """Assignment of boxes to objects by intersection over union (IoU).

    Attributes:
        positive: a box is assigned to the object with the largest IoU if that is at least this.
        negative: a box is background if all its IoUs are below this; between the two thresholds it
            is ignored.
        min_pos_iou: the best boxes of an object are assigned to it even below ``positive``, if
            their IoU is at least this (with 0, each object gets a box); None for no such rule.
    """

    positive: float
    negative: float
    min_pos_iou: float | None = None

    def __call__(self, boxes: Tensor, objects: Tensor) -> Tensor:
        """Return for each box the index of its object, ``BACKGROUND`` or ``IGNORED``, (N,).

        Args:
            boxes: (N, 4).
            objects: (G, 4); without objects, all boxes are background.
        """
        if not len(objects) or not len(boxes):
            return torch.full((len(boxes),), BACKGROUND, device=boxes.device)
        iou = overlaps(objects, boxes)
        best, index = iou.max(dim=0)
        match = torch.full_like(index, IGNORED)
        match[best < self.negative] = BACKGROUND
        match = torch.where(best >= self.positive, index, match)
        if self.min_pos_iou is None:
            return match
        # All boxes whose IoU equals an object's maximum; of several such objects the last one wins.
        top = iou.max(dim=1, keepdim=True).values
        is_best = (iou == top) & (top >= self.min_pos_iou)
        number = torch.arange(1, len(objects) + 1, device=boxes.device)[:, None]
        last = (is_best * number).amax(dim=0) - 1
        return torch.where(last >= 0, last, match)


@dataclass(frozen=True)
class Sampler:
    """A random choice of the boxes that the loss is computed on.

    Attributes:
        number: of boxes; None takes every box that is not ignored.
        positive_fraction: largest fraction of boxes with objects; the rest is background.
    """

    number: int | None
    positive_fraction: float

    def __call__(self, match: Tensor) -> tuple[Tensor, Tensor]:
        """Return the indices of boxes with objects and of background boxes, each ascending.

        Args:
            match: (N,), an assignment of :class:`Matcher`.
        """
        positive = (match >= 0).nonzero()[:, 0]
        negative = (match == BACKGROUND).nonzero()[:, 0]
        if self.number is None:
            return positive, negative
        positive = _choose(positive, int(self.number * self.positive_fraction))
        return positive, _choose(negative, self.number - len(positive))


def _choose(indices: Tensor, number: int) -> Tensor:
    if len(indices) <= number:
        return indices
    chosen = torch.randperm(len(indices), device=indices.device)[:number]
    return indices[chosen].sort().values
