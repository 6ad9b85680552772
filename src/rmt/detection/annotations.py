"""COCO's form, which every detection data set takes here, and the cleaning of what tools write.

A data set is a dict with ``images`` (id, file_name, height, width), ``annotations`` (id, image_id,
category_id, bbox x y w h, area, iscrowd, maybe segmentation and ignore) and ``categories`` (id,
name). ``ignore`` marks an object that is neither trained on nor scored, as VOC's difficult ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rmt.data.classes import class_name
from rmt.data.findings import Findings
from rmt.data.images import image_size, is_bomb
from rmt.data.named_files import FileFinder
from rmt.detection.rle import box_of, clean_segmentation, is_number

Content = dict[str, Any]
#: A kind, for one and for many, and what is wrong.
Fault = tuple[str, str]
_LISTS = ("images", "annotations", "categories")


class Ids:
    """Whole numbers for the ids of a file, which may be text or floats (``"1"``, ``1.0``)."""

    def __init__(self) -> None:
        self._others: dict[str, int] = {}

    def number(self, value: Any) -> int | None:
        """Return the number of an id, or None for what is not one.

        Text that is not a number gets a negative one of its own.
        """
        if type(value) is int and value.bit_length() < 64:
            return value
        if isinstance(value, str) and value.strip():
            try:
                value = float(value)
            except ValueError:
                return self._others.setdefault(value, -1 - len(self._others))
        return int(value) if is_number(value) and value == int(value) else None


def clean(content: Any, name: str, *, files: FileFinder, findings: Findings) -> Content:
    """Return a COCO file's content with what cannot be used left out, and image paths absolute.

    Good entries stay as they are, but ``area`` and ``iscrowd`` are filled in where absent.

    Args:
        content: of the JSON file; its entries are completed in place.
        name: of the file, for messages.
        files: finds the image file that a name means.
        findings: counts and names what is left out.

    Raises:
        ValueError: if it is not COCO's form at all, or none of the images is there.
    """
    for part in _LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise ValueError(f"{name} is not a COCO file: it has no list {part!r}")
    image_ids, category_ids = Ids(), Ids()
    categories, merged = _categories(content["categories"], category_ids)
    images, listed = _images(content["images"], name, image_ids, files, findings)
    if content["images"] and not images:
        first = content["images"][0]
        raise ValueError(
            f"{name}: none of its {len(content['images'])} images can be used; the first is "
            f"{first.get('file_name') if isinstance(first, dict) else first!r}"
        )
    by_id = {entry["id"]: entry for entry in images}
    annotations: list[Content] = []
    faults: list[Fault] = []
    for place, entry in enumerate(content["annotations"]):
        if not isinstance(entry, dict):
            faults.append(("annotation of another type|annotations of another type", repr(entry)))
        else:
            image_id = image_ids.number(entry.get("image_id"))
            category = merged.get(category_ids.number(entry.get("category_id")))
            if image_id in by_id and category is not None:
                entry["image_id"], entry["category_id"] = image_id, category
                if _fill(entry, by_id[image_id], faults):
                    annotations.append(entry)
            elif image_id in by_id:
                kind = "annotation of no listed class|annotations of no listed class"
                faults.append((kind, f"category_id {entry.get('category_id')!r}"))
            elif image_id not in listed:  # else its image has been named
                kind = "annotation of no listed image|annotations of no listed image"
                faults.append((kind, f"image_id {entry.get('image_id')!r}"))
        for kind, said in faults:
            findings.fault(kind, f"{name}, annotation {_id_of(entry, place)}: {said}")
        faults.clear()
    _renumber(annotations)
    return content | {"images": images, "annotations": annotations, "categories": categories}


def drop_supercategories(contents: Sequence[Content]) -> list[str]:
    """Drop the categories that only group others, as Roboflow writes one; return their names.

    Such a category is the supercategory of another one and has no annotation in any split.
    """
    used = {(i, a["category_id"]) for i, c in enumerate(contents) for a in c["annotations"]}
    used_names = {
        entry["name"]
        for i, content in enumerate(contents)
        for entry in content["categories"]
        if (i, entry["id"]) in used
    }
    groups = {
        name
        for content in contents
        for entry in content["categories"]
        if isinstance(name := entry.get("supercategory"), str) and name != entry["name"]
    }
    dropped = []
    for content in contents:
        kept = [
            entry
            for entry in content["categories"]
            if entry["name"] in used_names or entry["name"] not in groups
        ]
        gone = [entry["name"] for entry in content["categories"] if entry not in kept]
        dropped += [name for name in gone if name not in dropped]
        content["categories"] = kept
    return dropped


def with_classes(content: Content, classes: Sequence[str]) -> Content:
    """Return a data set whose categories are these classes, in this order.

    The classes that it lacks get ids of their own.

    Raises:
        ValueError: if it has other ones.
    """
    own = {entry["name"]: entry for entry in content["categories"]}
    if list(own) == list(classes):
        return content
    if strange := [name for name in own if name not in classes]:
        raise ValueError(f"the data have classes that the first split lacks: {strange[:5]}")
    free = max((entry["id"] for entry in own.values()), default=0) + 1
    added = {
        name: {"id": free + i, "name": name}
        for i, name in enumerate(name for name in classes if name not in own)
    }
    return content | {"categories": [own.get(name) or added[name] for name in classes]}


def assemble(
    images: Iterable[Content], objects: Iterable[Content], classes: Iterable[str]
) -> Content:
    """Return a data set made of images, objects and class names, with ids given in order.

    Args:
        images: ``file_name``, ``height``, ``width``; ids count from 1.
        objects: ``image_id`` (in that counting), ``label`` (index into ``classes``) and ``bbox``;
            maybe ``segmentation``, ``iscrowd`` and ``ignore``.
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


def _categories(entries: list[Any], ids: Ids) -> tuple[list[Content], dict[int | None, int]]:
    """Return the categories, those of one name merged, and id in the file -> id of the category."""
    by_name: dict[str, Content] = {}
    merged: dict[int | None, int] = {}
    for entry in entries:
        number = ids.number(entry.get("id")) if isinstance(entry, dict) else None
        if number is None or number in merged:
            continue  # what is annotated so is named with its annotations
        name = class_name(str(entry.get("name", number)))
        known = by_name.setdefault(name, entry)
        if known is entry and (entry.get("id") != number or entry.get("name") != name):
            by_name[name] = entry | {"id": number, "name": name}
        merged[number] = by_name[name]["id"]
    return list(by_name.values()), merged


def _images(
    entries: list[Any],
    name: str,
    ids: Ids,
    files: FileFinder,
    findings: Findings,
) -> tuple[list[Content], set[int]]:
    """Return the images that are there, with absolute paths, and the ids of all that are listed."""
    kept: list[Content] = []
    listed: set[int] = set()
    for place, entry in enumerate(entries):
        where = f"{name}, image {_id_of(entry, place)}"
        number = ids.number(entry.get("id")) if isinstance(entry, dict) else None
        file_name = entry.get("file_name") if isinstance(entry, dict) else None
        if number is None or not isinstance(file_name, str):
            findings.fault("image without id or file_name|images without id or file_name", where)
            continue
        if number in listed:
            what = f"{where}, {file_name}"
            findings.fault("image whose id occurs before|images whose ids occur before", what)
            continue
        listed.add(number)
        path = files.find(file_name)
        if path is None:
            files.report(file_name, findings=findings, what=f"{where}, {file_name}")
            continue
        size = _side(entry.get("width")), _side(entry.get("height"))
        if not all(size) or is_bomb(size):
            try:
                size = image_size(path)
            except ValueError as error:
                findings.fault("unreadable image|unreadable images", f"{where}: {error}")
                continue
        entry |= {"id": number, "file_name": str(path), "width": size[0], "height": size[1]}
        kept.append(entry)
    return kept, listed


def _fill(entry: Content, image: Content, faults: list[Fault]) -> bool:
    """Complete an annotation in place; return whether it can be used. Say what is wrong with it."""
    size = image["height"], image["width"]
    polygons = entry.get("segmentation")
    try:
        cleaned = clean_segmentation(polygons, size)
    except ValueError as error:
        kind = "object with a faulty segmentation|objects with faulty segmentations"
        faults.append((kind, f"a segmentation {error}"))
        return False
    if cleaned is not None and cleaned is not polygons:
        both_lists = isinstance(cleaned, list) and isinstance(polygons, list)
        if both_lists and len(cleaned) < len(polygons):
            kind = "polygon of fewer than three points|polygons of fewer than three points"
            faults.append((kind, f"{len(cleaned)} of its polygons are used"))
        entry["segmentation"] = cleaned
    box = _box(entry.get("bbox"))
    if box is None and cleaned is not None and not entry.get("bbox"):
        box = box_of(cleaned, *size)
    if box is None:
        said = f"bbox {entry.get('bbox')!r}; expected four numbers x, y, w, h"
        faults.append(("object without a box|objects without a box", said))
        return False
    crowd = entry.get("iscrowd") or 0
    if crowd not in (0, 1, "0", "1"):
        kind = "object with a faulty iscrowd|objects with a faulty iscrowd"
        faults.append((kind, f"iscrowd {crowd!r}; expected 0 or 1"))
        return False
    entry["bbox"] = box
    if not is_number(entry.get("area")):
        entry["area"] = box[2] * box[3]
    entry["iscrowd"] = int(crowd)
    return True


def _box(value: Any) -> list[float] | None:
    if not isinstance(value, list) or len(value) != 4:
        return None
    if all(map(is_number, value)):
        return value
    try:
        numbers = [float(each) for each in value]
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if all(map(is_number, numbers)) else None


def _side(value: Any) -> int:
    """Return a side in pixels; 0 where the file does not tell."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0
    return int(number) if number > 0 and number.is_integer() else 0


def _renumber(annotations: list[Content]) -> None:
    """Give annotations new ids where a file repeats or lacks them; nothing refers to them."""
    ids = [entry.get("id") for entry in annotations]
    if not all(type(each) is int for each in ids) or len(set(ids)) < len(ids):
        for i, entry in enumerate(annotations, start=1):
            entry["id"] = i


def _id_of(entry: Any, place: int) -> str:
    known = isinstance(entry, dict) and "id" in entry
    return f"id {entry['id']}" if known else f"number {place}"
