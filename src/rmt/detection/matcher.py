"""Which box learns from which object: assignment by IoU, and random sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmt.detection.boxes import overlaps

#: Marks in an assignment; other values are indices of objects.
BACKGROUND, IGNORED = -1, -2


@dataclass(frozen=True)
class Matcher:
    """Assignment by intersection over union.

    Attributes:
        positive: least IoU with an object to learn it.
        negative: a box below it with all objects learns background; in between it is ignored.
        min_pos_iou: an object's best boxes learn it, if their IoU is at least this (0 lets every
            object have one); None for no such rule.
    """

    positive: float
    negative: float
    min_pos_iou: float | None = None

    def __call__(self, boxes: Tensor, objects: Tensor) -> Tensor:
        """Return for each box the index of its object, ``BACKGROUND`` or ``IGNORED``.

        Args:
            boxes: (N, 4).
            objects: (G, 4); none makes every box background.
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
        # All boxes that reach an object's maximum exactly; of several objects the last one wins.
        top = iou.max(dim=1, keepdim=True).values
        reached = (iou == top) & (top >= self.min_pos_iou)
        number = torch.arange(1, len(objects) + 1, device=boxes.device)[:, None]
        rescued = (reached * number).amax(dim=0) - 1
        return torch.where(rescued >= 0, rescued, match)


@dataclass(frozen=True)
class Sampler:
    """A random choice of boxes to compute the loss on.

    Attributes:
        number: how many; None takes every box that is not ignored.
        positive_fraction: at most this part learns objects; background fills the rest.
    """

    number: int | None
    positive_fraction: float

    def __call__(self, match: Tensor) -> tuple[Tensor, Tensor]:
        """Return indices of boxes with objects and of background, each ascending."""
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
