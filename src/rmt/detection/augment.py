"""Augmentation of a training image with its boxes and masks, as in the release's pipelines."""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rmt.data.resize import keep_ratio, resize_bytes
from rmt.detection.recipe import Augment, Model

Example = tuple[Tensor, dict[str, Tensor]]


class TrainTransform:
    """Flip, possibly crop, resize: the 1x and the multi-scale (3x) pipeline.

    All random numbers come from Python's global generator.

    Args:
        model: gives the sizes of evaluation.
        augment: how to augment.
    """

    def __init__(self, model: Model, augment: Augment) -> None:
        self.model, self.augment = model, augment

    def __call__(self, image: Tensor, target: dict[str, Tensor]) -> Example:
        """Augment an example.

        Args:
            image: (3, H, W), uint8.
            target: ``boxes`` (N, 4), ``labels`` (N,) and optionally ``masks`` (N, H, W).

        Returns:
            The image, (3, h, w) uint8, at the size that the network sees, and its target, without
            boxes that have no area in it.
        """
        how = self.augment
        if random.random() < how.flip:
            image, target = mirrored(image, target, axis=2)
        if random.random() < how.flip_vertical:
            image, target = mirrored(image, target, axis=1)
        if random.random() < how.crop:
            if how.crop_min_sizes:
                image, target = self.resized(image, target, random.choice(how.crop_min_sizes))
            image, target = cropped(image, target, *how.crop_size)
        side = random.choice(how.min_sizes) if how.min_sizes else self.model.min_size
        image, target = self.resized(image, target, side)
        if how.brightness:
            image = brightened(image, how.brightness)
        return image, with_area(target)  # rounding may have left none of a narrow box

    def resized(self, image: Tensor, target: dict[str, Tensor], short: int) -> Example:
        """Return the example resized to a short side, the long one within ``model.max_size``."""
        height, width = image.shape[1:]
        size = keep_ratio(height, width, min_size=short, max_size=self.model.max_size)
        scale = np.array([size[1] / width, size[0] / height] * 2, dtype=np.float32)
        limits = torch.tensor([size[1], size[0]] * 2)
        new = dict(target)
        new["boxes"] = (target["boxes"] * torch.from_numpy(scale)).minimum(limits)
        if "masks" in target:
            masks = target["masks"]
            new["masks"] = (
                F.interpolate(masks[None], size=size)[0]
                if len(masks)
                else (masks.new_zeros(0, *size))
            )
        return resize_bytes(image, *size), new


def mirrored(image: Tensor, target: dict[str, Tensor], *, axis: int) -> Example:
    """Return the example flipped horizontally (axis 2) or vertically (axis 1)."""
    low, high = (0, 2) if axis == 2 else (1, 3)
    new = dict(target)
    boxes = target["boxes"].clone()
    boxes[:, low] = image.shape[axis] - target["boxes"][:, high]
    boxes[:, high] = image.shape[axis] - target["boxes"][:, low]
    new["boxes"] = boxes
    if "masks" in target:
        new["masks"] = target["masks"].flip(axis)
    return image.flip(axis), new


def cropped(image: Tensor, target: dict[str, Tensor], low: int, high: int) -> Example:
    """Return a random crop with sides of ``low`` to ``high`` pixels, at most the image's.

    Objects outside the crop are dropped; possibly none is left.
    """
    height, width = image.shape[1:]
    h = random.randint(min(height, low), min(height, high))
    w = random.randint(min(width, low), min(width, high))
    top, left = random.randint(0, height - h), random.randint(0, width - w)
    boxes = target["boxes"] - torch.tensor([left, top] * 2)
    new = target | {"boxes": boxes.clamp(min=0).minimum(torch.tensor([w, h] * 2))}
    if "masks" in target:
        new["masks"] = target["masks"][:, top : top + h, left : left + w]
    return image[:, top : top + h, left : left + w], with_area(new)


def with_area(target: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the objects whose boxes have an area."""
    boxes = target["boxes"]
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    return target if kept.all() else {key: value[kept] for key, value in target.items()}


def brightened(image: Tensor, strength: float) -> Tensor:
    """Return ``image`` with random contrast and brightness, each within ±``strength``."""
    contrast = 1 + random.uniform(-strength, strength)
    shift = 255 * random.uniform(-strength, strength)
    mean = image.float().mean()
    return ((image - mean) * contrast + mean + shift).clamp(0, 255).byte()
