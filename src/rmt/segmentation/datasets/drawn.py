"""Pixels that are to be written as a data set: the toys of the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

#: Classes of what is drawn.
SHAPES = ("ground", "disc", "square")


def save(pixels: np.ndarray, path: Path, *, palette: bool = False) -> None:
    """Write an image or a mask, the folder too; a mask maybe with a palette of any colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    image.save(path)
