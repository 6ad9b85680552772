"""Mask files to class indices; a mask that does not fit says which file, which value, and why."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rmt.data.images import named_faults, open_image
from rmt.files import check_file
from rmt.segmentation.segmenter import IGNORED

#: Entry of a table for a mask value that must not occur.
INVALID = -1

Colour = tuple[int, int, int]


def plain_table(
    num_classes: int, *, reduce_zero_label: bool = False, ignore_index: int = IGNORED
) -> np.ndarray:
    """Return mask value -> class index: the same, or one less where 0 is unlabelled.

    255 is ignored in any case; a value without a class is :data:`INVALID`.

    Args:
        num_classes: class indices run to one less.
        reduce_zero_label: 0 is ignored, and 1 is the first class.
        ignore_index: another value that is ignored, whether it is a class's or not.

    Returns:
        (256,), or longer if ``ignore_index`` is larger.
    """
    table = np.full(max(256, ignore_index + 1), INVALID, dtype=np.int16)
    first = 1 if reduce_zero_label else 0
    table[first : first + num_classes] = np.arange(num_classes)
    if reduce_zero_label:
        table[0] = IGNORED
    table[[255, ignore_index]] = IGNORED
    return table


def read_mask(
    path: str | Path, table: np.ndarray, palette: Sequence[Colour] | None = None
) -> np.ndarray:
    """Read a mask file as class indices (H, W) of 8 bits, 255 where a pixel is ignored.

    Args:
        path: an image with one value per pixel (palette PNGs give their indices). With ``palette``
            one whose colours are those, whether it is stored as RGB, with a palette or in grey.
        table: mask value -> class index; see :func:`plain_table`.
        palette: RGB colour of each mask value; white and black are ignored pixels if unlisted.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file cannot be read, is a JPEG, is in colour and no palette is known, or
            has a value or colour without a class; the message names file and value.
    """
    path = Path(path)
    check_file(path, what="mask")
    values = _pixels(path, coloured=bool(palette))
    if values.ndim == 3:
        values = _of_colours(values, path, palette)
    values = values.astype(np.int64)
    inside = (values >= 0) & (values < len(table))
    labels = np.where(inside, table[values.clip(0, len(table) - 1)], INVALID)
    if (labels == INVALID).any():
        wrong, counts = np.unique(values[labels == INVALID], return_counts=True)
        known = np.flatnonzero((table != INVALID) & (table != IGNORED))
        raise ValueError(
            f"mask {path} has the value {wrong[0]} at {counts[0]} pixels"
            + (f" (and {len(wrong) - 1} more such values)" if len(wrong) > 1 else "")
            + f"; known values are {known[0]} to {known[-1]} and 255 for ignored pixels. Add the "
            "class, or set data.ignore_index to the value that means ignored, or "
            "data.reduce_zero_label if the classes begin at 1"
        )
    return labels.astype(np.uint8)


def _pixels(path: Path, *, coloured: bool) -> np.ndarray:
    """Return the values (H, W) of a mask file, or its colours (H, W, 3)."""
    with named_faults(f"mask {path}"), warnings.catch_warnings(), open_image(path) as image:
        warnings.simplefilter("ignore")  # Pillow's: what it can read is good enough
        image.load()
        is_jpeg = image.format in ("JPEG", "MPO")
        if coloured and image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
            image = image.convert("RGB")
        with_alpha = image.mode in ("LA", "PA")
        pixels = np.asarray(image.getchannel(0) if with_alpha else image)
    if is_jpeg:
        raise ValueError(
            f"mask {path} is a JPEG. JPEG is lossy: it blurs classes into each other along every "
            "edge; save masks as PNG"
        )
    if coloured and pixels.ndim == 2:
        raise ValueError(
            f"mask {path} holds numbers of {pixels.dtype}, but classes.txt lists colours; remove "
            "them if the numbers are the classes"
        )
    return pixels[..., :3] if pixels.ndim == 3 else pixels


def _of_colours(pixels: np.ndarray, path: Path, palette: Sequence[Colour] | None) -> np.ndarray:
    """Return mask values (H, W) of colours (H, W, 3)."""
    if not palette:
        if (pixels == pixels[..., :1]).all():  # one value per pixel, stored three times
            return pixels[..., 0]
        raise ValueError(
            f"mask {path} is in colour where one class index per pixel is expected. If its colours "
            "are classes, write them into classes.txt, one line per class: name red green blue; "
            "they are converted then"
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
            f"(x={x}, y={y}), which classes.txt does not list; if the masks hold class indices, "
            "remove the colours from it"
        )
    return values
