"""Mask files to class indices; a mask that does not fit says which file, which value, and why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from rmt.segmentation.segmenter import IGNORED

#: Entry of a table for a mask value that must not occur.
INVALID = -1

Colour = tuple[int, int, int]


def plain_table(num_classes: int, *, reduce_zero_label: bool = False) -> np.ndarray:
    """Return mask value -> class index, (256,): the same, or one less where 0 is unlabelled.

    255 is ignored in any case; a value without a class is :data:`INVALID`.
    """
    table = np.full(256, INVALID, dtype=np.int16)
    first = 1 if reduce_zero_label else 0
    table[first : first + num_classes] = np.arange(num_classes)
    if reduce_zero_label:
        table[0] = IGNORED
    table[255] = IGNORED
    return table


def read_mask(
    path: str | Path, table: np.ndarray, palette: Sequence[Colour] | None = None
) -> np.ndarray:
    """Read a mask file as class indices (H, W) of 8 bits, 255 where a pixel is ignored.

    Args:
        path: an image with one value a pixel (palette PNGs give their indices), or an RGB picture
            whose colours are those of ``palette``.
        table: mask value -> class index, (256,); see :func:`plain_table`.
        palette: RGB colour of each mask value, to read RGB masks; ``#ffffff`` and unlisted black
            are ignored pixels.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file cannot be read, is an RGB picture and no palette is known, or has a
            value or colour without a class; the message names file and value.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no mask {str(path)!r}")
    try:
        with Image.open(path) as image:
            image.load()
            with_alpha = image.mode in ("LA", "PA")
            values = np.asarray(image.getchannel(0) if with_alpha else image)
    except (UnidentifiedImageError, OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"mask {path} cannot be read: {error}") from error
    if values.ndim == 3:
        values = _of_colours(values[..., :3], path, palette)
    values = values.astype(np.int64)
    inside = (values >= 0) & (values < len(table))
    labels = np.where(inside, table[values.clip(0, len(table) - 1)], INVALID)
    if (labels == INVALID).any():
        wrong, counts = np.unique(values[labels == INVALID], return_counts=True)
        known = np.flatnonzero(table != INVALID)
        raise ValueError(
            f"mask {path} has the value {wrong[0]} at {counts[0]} pixels"
            + (f" (and {len(wrong) - 1} more such values)" if len(wrong) > 1 else "")
            + f"; known values are {known[0]} to {known[-2]} and 255 for ignored pixels. "
            "Add the class, or set data.reduce_zero_label if the classes begin at 1"
        )
    return labels.astype(np.uint8)


def _of_colours(pixels: np.ndarray, path: Path, palette: Sequence[Colour] | None) -> np.ndarray:
    """Return mask values (H, W) of a colour picture (H, W, 3)."""
    grey = (pixels == pixels[..., :1]).all()
    if not palette:
        if grey:  # one value a pixel, stored three times
            return pixels[..., 0]
        raise ValueError(
            f"mask {path} is an RGB picture where one class index a pixel is expected. If its "
            "colours are classes, write them into classes.txt, one line a class: name red green "
            "blue; they are converted then"
        )
    code = pixels.astype(np.int64) @ np.array([65536, 256, 1])
    listed = np.array(palette, dtype=np.int64) @ np.array([65536, 256, 1])
    values = np.full(code.shape, INVALID, dtype=np.int64)
    for ignored in (0xFFFFFF, 0x000000):
        values[code == ignored] = IGNORED
    for value, colour in enumerate(listed):
        values[code == colour] = value
    if (values == INVALID).any():
        y, x = np.argwhere(values == INVALID)[0]
        raise ValueError(
            f"mask {path} has the colour {tuple(int(c) for c in pixels[y, x])} at pixel "
            f"(x={x}, y={y}), which classes.txt does not list"
        )
    return values
