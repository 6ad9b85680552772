"""Tiny valid data sets in every format: coloured discs and squares on noise, with their masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rmt.data.splits import Split
from rmt.segmentation.datasets import FORMATS
from rmt.segmentation.datasets.drawn import SHAPES as SHAPES

_SPLITS: tuple[Split, ...] = ("train", "val")


def toy(
    root: str | Path, name: str = "folder", *, images: int = 6, size: tuple[int, int] = (48, 64)
) -> Path:
    """Write a data set of three classes in splits train and val; return its folder.

    Args:
        root: folder to write to; it is created if it does not exist.
        name: of a format.
        images: number of images per split.
        size: (height, width) of the images; every second one is 8 pixels less high and 8 wider.

    Raises:
        ValueError: for an unknown format.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r} (known: {', '.join(FORMATS)})")
    write = FORMATS[name].write
    assert write is not None
    root = Path(root)
    for seed, split in enumerate(_SPLITS):
        for i in range(images):
            height, width = size
            drawn = draw(1000 * seed + i, height - 8 * (i % 2), width + 8 * (i % 2))
            write(root, split, f"{split}_{i}", *drawn)
    return root


def draw(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image (H, W, 3) and its classes (H, W), indices into :data:`SHAPES`."""
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 120, (height, width, 3)).astype(np.uint8)
    labels = np.zeros((height, width), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    radius = max(1, min(height, width) // 6)
    for label, colour in ((1, (220, 60, 60)), (2, (60, 80, 220))):
        cy, cx = rng.integers(0, height), rng.integers(0, width)
        dy, dx = abs(y - cy), abs(x - cx)
        inside = dy**2 + dx**2 <= radius**2 if label == 1 else np.maximum(dy, dx) <= radius
        labels[inside] = label
        noise = rng.integers(-30, 31, (int(inside.sum()), 3))
        image[inside] = (np.array(colour) + noise).clip(0, 255)
    return image, labels
