"""Tiny valid data sets in every format: noise whose mean colour depends on the class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rmt.classification.datasets import FORMATS
from rmt.data.splits import Split

#: Classes, and the mean colour of their images.
COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (210, 50, 40)}
_SPLITS: tuple[Split, ...] = ("train", "val")


def toy(
    root: str | Path, name: str = "folder", *, images: int = 4, size: tuple[int, int] = (24, 32)
) -> Path:
    """Write a data set of three classes in splits train and val; return its ``data.root``.

    Args:
        root: folder to write to; it is created if it does not exist.
        name: of a format that can be written.
        images: number of images per class and split.
        size: (height, width) of the images.

    Raises:
        ValueError: for a format that cannot be written.
    """
    known = {own: each.write for own, each in FORMATS.items() if each.write}
    if name not in known:
        raise ValueError(f"unknown format {name!r} (known: {', '.join(known)})")
    data_root = Path(root)
    for seed, split in enumerate(_SPLITS):
        drawn = {
            label: [draw(10_000 * seed + 100 * number + i, label, size) for i in range(images)]
            for number, label in enumerate(COLOURS)
        }
        data_root = known[name](Path(root), split, drawn)
    return data_root


def draw(seed: int, label: str, size: tuple[int, int]) -> np.ndarray:
    """Return an image (H, W, 3) of 8 bits."""
    noise = np.random.default_rng(seed).integers(-40, 41, (*size, 3))
    return (np.array(COLOURS[label]) + noise).clip(0, 255).astype(np.uint8)
