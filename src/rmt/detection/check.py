"""Checks of the images and targets that a caller passes to a detector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rmt.detection.transform import Target


def check_images(images: Sequence[Tensor] | Tensor) -> list[Tensor]:
    """Return the images as a list, each a (3, h, w) tensor of floats in 0..1.

    Raises:
        ValueError: naming the index of the image, with its shape, dtype or range of values.
    """
    if isinstance(images, Tensor) and images.ndim == 3:
        raise ValueError("a detector takes a list of images; pass a single one as [image]")
    if not len(images):
        raise ValueError("a detector needs at least one image, got an empty list")
    for i, image in enumerate(images):
        if image.ndim != 3 or image.shape[0] != 3 or not image.numel():
            raise ValueError(f"image {i} has shape {tuple(image.shape)}; expected (3, h, w)")
        if not image.is_floating_point():
            raise ValueError(f"image {i} is {image.dtype}; divide by 255 to get floats in 0..1")
        if image.max() > 1 or image.min() < 0 or image.isnan().any():
            raise ValueError(
                f"image {i} has values from {image.min():.3g} to {image.max():.3g}; expected 0..1: "
                "the detector normalises images itself"
            )
    return list(images)


def check_targets(
    images: Sequence[Tensor], targets: Sequence[Target], *, num_classes: int, masks: bool
) -> None:
    """Raise an error unless there is one target per image, and each one is complete.

    Args:
        images: already checked.
        targets: one mapping per image.
        num_classes: K; labels are 0 to K - 1.
        masks: whether masks are needed.

    Raises:
        ValueError: naming the index of the target and the entry that is wrong.
    """
    if len(images) != len(targets):
        raise ValueError(f"{len(images)} images but {len(targets)} targets; give one per image")
    wanted = ("boxes", "labels", "masks") if masks else ("boxes", "labels")
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        for name in wanted:
            if name not in target:
                raise ValueError(f"target {i} has no {name!r}, only {sorted(target)}")
        boxes, labels = target["boxes"], target["labels"]
        if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1]:
            raise ValueError(
                f"target {i}: boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)}; "
                "expected (N, 4) and (N,)"
            )
        if masks and target["masks"].shape != (len(boxes), *image.shape[1:]):
            raise ValueError(
                f"target {i}: masks {tuple(target['masks'].shape)} for {len(boxes)} boxes in an "
                f"image {tuple(image.shape)}; expected (N, h, w)"
            )
        if not len(boxes):
            continue
        if not torch.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
            raise ValueError(
                f"target {i} has a box without area or with NaN; expected x1, y1, x2, y2 in "
                "pixels with x1 < x2 and y1 < y2"
            )
        if labels.is_floating_point() or not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(
                f"target {i} has labels {labels.unique().tolist()[:5]}; expected integers from 0 "
                f"to {num_classes - 1}"
            )


def check_areas(targets: Sequence[Target], scaled: Sequence[Target]) -> None:
    """Raise an error unless each box has an area inside its image: otherwise the loss is NaN.

    Args:
        targets: as they were given.
        scaled: the same after resizing, clipped to the images.

    Raises:
        ValueError: naming the index of the target, and the box.
    """
    for i, (target, cut) in enumerate(zip(targets, scaled, strict=True)):
        empty = (cut["boxes"][:, 2:] <= cut["boxes"][:, :2]).any(dim=1)
        if empty.any():
            number = int(empty.nonzero()[0])
            raise ValueError(
                f"target {i}: box {number}, {target['boxes'][number].tolist()}, has no area inside "
                "its image; remove such objects"
            )
