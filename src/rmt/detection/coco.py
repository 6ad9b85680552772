"""COCO JSON: the form that every data set takes here, and what may be wrong with one.

A data set is a dict with ``images`` (id, file_name, height, width), ``annotations`` (id, image_id,
category_id, bbox x y w h, area, iscrowd, maybe segmentation) and ``categories`` (id, name).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rmt.files import write_atomically

_FIELDS = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
}
_SINGULAR = {"images": "image", "categories": "category", "annotations": "annotation"}
_IDS = {"id", "image_id", "category_id"}


def read(path: Path) -> dict[str, Any]:
    """Read and check a COCO JSON file.

    Raises:
        ValueError: if it is no JSON, a field is missing or of a wrong type, an id occurs twice or
            leads nowhere, or a box or mask is malformed; the message names the file, the entry's id
            and the field.
    """
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    return check(content, str(path))


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a data set as COCO JSON."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content)))


def check(content: Any, name: str) -> dict[str, Any]:
    """Return the data set ``content`` with ``area`` and ``iscrowd`` filled in where absent.

    Args:
        content: of a JSON file.
        name: how to call it in errors.

    Raises:
        ValueError: as :func:`read`.
    """
    for part, fields in _FIELDS.items():
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise ValueError(f"{name} is no COCO file: it has no list {part!r}")
        _check_fields(content[part], fields, f"{name}: {_SINGULAR[part]}")
    images = {entry["id"]: entry for entry in content["images"]}
    for entry in images.values():
        where = f"{name}: image id {entry['id']}"
        if not isinstance(entry["file_name"], str):
            raise ValueError(f"{where} has file_name {entry['file_name']!r}, no text")
        if not all(isinstance(entry[k], int) and entry[k] > 0 for k in ("height", "width")):
            size = f"height {entry['height']!r}, width {entry['width']!r}"
            raise ValueError(f"{where} has {size}; expected whole pixels")
    categories = {entry["id"] for entry in content["categories"]}
    for entry in content["annotations"]:
        where = f"{name}: annotation id {entry['id']}"
        if entry["image_id"] not in images:
            raise ValueError(f"{where} is of image {entry['image_id']}, which is not listed")
        if entry["category_id"] not in categories:
            raise ValueError(f"{where} is of category {entry['category_id']}, which is not listed")
        box = entry["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise ValueError(f"{where} has bbox {box!r}; expected four numbers x, y, w, h")
        image = images[entry["image_id"]]
        _check_segmentation(entry.get("segmentation"), (image["height"], image["width"]), where)
        if not _is_number(entry.setdefault("area", box[2] * box[3])):
            raise ValueError(
                f"{where} has area {entry['area']!r}; expected a number or none at all"
            )
        if entry.setdefault("iscrowd", 0) not in (0, 1):
            raise ValueError(f"{where} has iscrowd {entry['iscrowd']!r}; expected 0 or 1")
    return content


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


def assemble(
    images: Iterable[Mapping[str, Any]],
    objects: Iterable[Mapping[str, Any]],
    classes: Iterable[str],
) -> dict[str, Any]:
    """Return a data set made of images, objects and class names, with ids given in order.

    Args:
        images: ``file_name``, ``height``, ``width``; ids count from 1.
        objects: ``image_id`` (in that counting), ``label`` (index into ``classes``) and ``bbox``;
            maybe ``segmentation`` and ``iscrowd``.
        classes: category ids count from 1.
    """
    annotations = []
    for i, entry in enumerate(objects, start=1):
        own = {key: value for key, value in entry.items() if key != "label"}
        own |= {"id": i, "category_id": entry["label"] + 1}
        own.setdefault("iscrowd", 0)
        own.setdefault("area", own["bbox"][2] * own["bbox"][3])
        annotations.append(own)
    return {
        "images": [{"id": i, **entry} for i, entry in enumerate(images, start=1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, start=1)],
    }


def _check_fields(entries: list[Any], fields: tuple[str, ...], kind: str) -> None:
    """Raise unless each entry has its fields, and whole numbers for ids, its own but once."""
    seen = set()
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{kind} number {i} is {entry!r}; expected an object")
        for field in fields:
            if field not in entry:
                which = f"id {entry['id']}" if "id" in entry else f"number {i}"
                raise ValueError(f"{kind} {which} has no {field!r}")
            if field in _IDS and type(entry[field]) is not int:
                raise ValueError(
                    f"{kind} number {i} has {field} {entry[field]!r}; expected a whole number"
                )
        if entry["id"] in seen:
            raise ValueError(f"{kind} id {entry['id']} occurs twice")
        seen.add(entry["id"])


def _check_segmentation(value: Any, size: tuple[int, int], where: str) -> None:
    if value is None:
        return
    if isinstance(value, list):
        if all(map(_is_polygon, value)):
            return
        raise ValueError(
            f"{where} has a segmentation that is no list of polygons [x0, y0, x1, y1, ...] of at "
            "least three points each"
        )
    if not isinstance(value, dict) or not isinstance(value.get("counts"), str | list):
        raise ValueError(
            f"{where} has a segmentation of type {type(value).__name__}; expected polygons or a "
            "run-length code with 'size' and 'counts'"
        )
    if value.get("size") != [*size]:
        raise ValueError(
            f"{where} has a mask of size {value.get('size')}, its image is of {[*size]}"
        )
    runs = value["counts"]
    runs = _runs(runs) if isinstance(runs, str) else runs
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != math.prod(size):
        raise ValueError(
            f"{where} has a run-length code that does not fill its image: its counts must be whole "
            f"numbers that add up to {math.prod(size)}, the pixels of {[*size]}"
        )


def _runs(code: str) -> list[int]:
    """Return the counts that a compressed code spells, and a negative one for what is no code.

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
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return [-1] if shift else runs


def _is_polygon(value: Any) -> bool:
    whole = isinstance(value, list) and len(value) >= 6 and len(value) % 2 == 0
    return whole and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _text(counts: bytes | str) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts
