"""Masks of objects as COCO stores them: polygons, or run-length codes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_NUMBERS = {int, float}
# No pixel, area or id of an image is near: beyond, sums and products would overflow.
_LARGEST = 2**53
# Polygons are drawn along five points a pixel, which the library keeps: so long an outline, in
# pixels, takes some hundred megabytes.
_LONGEST_OUTLINE = 2_000_000
_FEW_POINTS = 200  # cannot make one
# A point may lie outside of its image by so many of its sides.
_FAR = 10


def to_mask(segmentation: list | Mapping[str, Any], height: int, width: int) -> np.ndarray:
    """Return polygons or a run-length code as a bitmap (H, W) of 0 and 1."""
    from faster_coco_eval.core import mask as codec

    if isinstance(segmentation, list):
        parts = codec.frPyObjects(segmentation, height, width)
        code = codec.merge(parts if isinstance(parts, list) else [parts])
    elif isinstance(segmentation["counts"], list):
        code = codec.frPyObjects(dict(segmentation), height, width)
    else:
        code = dict(segmentation)
    return codec.decode(code)


def to_rle(masks: np.ndarray) -> list[dict[str, Any]]:
    """Return bitmaps (N, H, W) as compressed run-length codes of plain JSON values."""
    from faster_coco_eval.core import mask as codec

    if not len(masks):
        return []
    codes = codec.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return [
        {"size": [int(side) for side in code["size"]], "counts": _text(code["counts"])}
        for code in codes
    ]


def moved(
    code: Mapping[str, Any], corner: tuple[int, int], size: tuple[int, int]
) -> dict[str, Any]:
    """Return the code of a mask whose ``corner`` (x, y) lies in an image of ``size`` (h, w)."""
    from faster_coco_eval.core import mask as codec

    (x, y), (height, width) = corner, size
    mask = codec.decode(dict(code))
    columns = np.zeros((height, mask.shape[1]), dtype=np.uint8)
    columns[y : y + len(mask)] = mask
    # Runs go down the columns, so columns on the left and on the right only lengthen the ends.
    runs = run_lengths(to_rle(columns[None])[0]["counts"])
    runs[0] += x * height
    if right := (width - x - mask.shape[1]) * height:
        if len(runs) % 2 == 0:
            runs.append(0)
        runs[-1] += right
    (full,) = codec.frPyObjects([{"size": [height, width], "counts": runs}], height, width)
    return {"size": [height, width], "counts": _text(full["counts"])}


def clean_segmentation(value: Any, size: tuple[int, int]) -> Any:
    """Return a segmentation as COCO defines it, None if there is none.

    A polygon of fewer than three points, beside others, is dropped. Polygons may also be lists of
    pairs, or a single one without the list around it.

    Args:
        value: from a file.
        size: (height, width) of the image.

    Raises:
        ValueError: saying what is wrong, to be read behind "a segmentation".
    """
    if value is None or value == [] or value == {}:
        return None
    if isinstance(value, list):
        if is_number(value[0]):
            value = [value]
        polygons = [_flat(polygon) for polygon in value]
        good = [polygon for polygon in polygons if len(polygon) >= 6]
        if not good:
            raise ValueError("of fewer than three points")
        for polygon in good:
            check_extent(polygon, size)
        return value if good == value else good
    if not isinstance(value, dict) or not isinstance(value.get("counts"), str | list):
        raise ValueError(
            f"of type {type(value).__name__}; expected polygons, or a run-length code with 'size' "
            "and 'counts'"
        )
    if value.get("size") != [*size]:
        raise ValueError(f"of size {value.get('size')} in an image of {[*size]}")
    runs = value["counts"]
    runs = run_lengths(runs) if isinstance(runs, str) else runs
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != math.prod(size):
        raise ValueError(
            "whose run-length code does not fill its image: its counts must be whole numbers that "
            f"add up to {math.prod(size)}, the pixels of {[*size]}"
        )
    return value


def check_extent(polygon: Sequence[float], size: tuple[int, int]) -> None:
    """Check that a polygon [x0, y0, ...] can be drawn in an image of (height, width).

    Raises:
        ValueError: saying what is wrong, to be read behind "a segmentation".
    """
    most = _FAR * max(size)
    if max(polygon) > most or min(polygon) < -most:
        raise ValueError(f"with a point far outside of its image of {[*size]}")
    if len(polygon) > 2 * _FEW_POINTS:
        steps = np.abs(np.diff(np.reshape(polygon, (-1, 2)), axis=0)).max(axis=1)
        if steps.sum() > _LONGEST_OUTLINE:
            raise ValueError(f"whose outline is {steps.sum():,.0f} pixels long")


def run_lengths(code: str) -> list[int]:
    """Return the counts that a compressed code spells, and a negative one for what is not a code.

    Five bits a character, low ones first, as the difference to the last count but one. The
    library's decoder draws the whole mask, which takes far longer for all but the most ragged.
    """
    runs, value, shift = [], 0, 0
    for byte in code.encode(errors="replace"):
        digit = byte - 48
        if not 0 <= digit < 64:
            return [-1]
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:  # more to come
            if shift > 60:
                return [-1]
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return [-1] if shift else runs


def box_of(segmentation: list | Mapping[str, Any], height: int, width: int) -> list[float]:
    """Return the box (x, y, w, h) around a clean segmentation."""
    if isinstance(segmentation, list):
        x = [value for polygon in segmentation for value in polygon[::2]]
        y = [value for polygon in segmentation for value in polygon[1::2]]
        return [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    rows, columns = to_mask(segmentation, height, width).nonzero()
    if not len(rows):
        return [0, 0, 0, 0]
    x, y = int(columns.min()), int(rows.min())
    return [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]


def is_number(value: Any) -> bool:
    """Return whether a value is a number that can be one of pixels; no overflow, no NaN."""
    return type(value) in _NUMBERS and -_LARGEST <= value <= _LARGEST


def _flat(polygon: Any) -> list[float]:
    """Return a polygon as [x0, y0, x1, y1, ...]."""
    if _is_flat(polygon):
        return polygon  # as nearly all are
    if isinstance(polygon, list) and all(isinstance(p, list) and len(p) == 2 for p in polygon):
        polygon = [value for pair in polygon for value in pair]
    if not isinstance(polygon, list) or len(polygon) % 2 or not all(map(is_number, polygon)):
        raise ValueError("that is not a list of polygons [x0, y0, x1, y1, ...]")
    return polygon


def _is_flat(polygon: Any) -> bool:
    """Return whether a polygon is [x0, y0, ...]: what :func:`is_number` asks, of all at once."""
    if not isinstance(polygon, list) or not polygon or len(polygon) % 2:
        return False
    if not set(map(type, polygon)) <= _NUMBERS:
        return False
    inside = min(polygon) >= -_LARGEST and max(polygon) <= _LARGEST
    return inside and is_number(sum(polygon))  # NaN hides from the two, not from the sum


def _text(counts: bytes | str) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts
