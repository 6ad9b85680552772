"""YOLO: one TXT file per image, a line per object: class, then centre and size as shares of 1.

A line with more numbers is a polygon (class, x0, y0, x1, y1, ...), as segmentation labels are, or
a box with keypoints where ``data.yaml`` has ``kpt_shape``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from rmt.data.classes import class_list
from rmt.data.findings import Findings
from rmt.data.folders import files_below, is_image_name
from rmt.data.formats import Format, Source
from rmt.data.images import image_size
from rmt.data.splits import SPLITS, Split, split_of
from rmt.data.text import read_text
from rmt.detection.annotations import Content, assemble
from rmt.detection.datasets.yolo_layout import Described, Place, describe, find_places
from rmt.detection.recipe import Data
from rmt.detection.rle import check_extent
from rmt.detection.samples import Samples

# Shares of the image are at most 1, but for boxes that reach over its border.
_LARGEST = 1.5


def sign(root: Path) -> str | None:
    """Return the file that names the classes, or that there are label files."""
    described = describe(root)
    return None if described is None else described.sign


def read(source: Source[Data]) -> Mapping[Split, Samples]:
    """Read the images of each split with their labels, which need not exist.

    The splits are those that ``data.yaml`` names, else the folders ``images/SPLIT`` or
    ``SPLIT/images``. An image without labels is background.

    Raises:
        ValueError: if nothing names the classes, or ``data.yaml`` names what is not there.
    """
    described = describe(source.root)
    if described is not None and not described.classes and source.classes:
        described = replace(described, classes=source.classes)  # labels number the model's classes
    root = source.root if source.root.is_dir() else source.root.parent
    if described is None or not described.classes:
        raise ValueError(
            f"{root} has no data.yaml (or data.yml, classes.txt, obj.names) that names the classes"
        )
    places = find_places(root, described, source.findings)
    if twice := len(described.classes) - len(set(described.classes)):
        source.findings.note("class name that repeats another|class names that repeat", count=twice)
    classes = class_list(dict.fromkeys(described.classes), source.classes)
    found = {
        split: _samples(places[split], described, classes, source.findings)
        for split in SPLITS
        if split in places
    }
    _note_unused(root, places, source.findings)
    _check_labels(root, places)
    return {split: samples for split, samples in found.items() if len(samples)}


def write(root: Path, split: Split, content: Content) -> Path:
    """Write a TXT file per image, and ``data.yaml``; run-length masks are lost.

    Crowds and objects to be ignored are left out: nothing would mark them.

    Returns:
        The folder of the split's images.
    """
    folder, labels = root / "images" / split, root / "labels" / split
    folder.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    label = {entry["id"]: i for i, entry in enumerate(content["categories"])}
    objects: dict[int, list[Content]] = {}
    for entry in content["annotations"]:
        if not entry["iscrowd"] and not entry.get("ignore"):
            objects.setdefault(entry["image_id"], []).append(entry)
    for image in content["images"]:
        lines = [
            " ".join([str(label[e["category_id"]]), *map(repr, _shares(e, image))])
            for e in objects.get(image["id"], ())
        ]
        path = labels / f"{Path(image['file_name']).stem}.txt"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    names = [entry["name"] for entry in content["categories"]]
    splits = [own for own in SPLITS if (root / "images" / own).is_dir()]
    described = {"names": names} | {own: f"images/{own}" for own in splits}
    text = yaml.safe_dump(described, sort_keys=False, allow_unicode=True)
    (root / "data.yaml").write_text(text, encoding="utf-8")
    return folder


def _shares(entry: Mapping[str, Any], image: Mapping[str, Any]) -> list[float]:
    """Return an object's polygon, or its box, as shares of the image."""
    width, height = image["width"], image["height"]
    polygons = entry.get("segmentation")
    if isinstance(polygons, list) and len(polygons) == 1:
        pairs = zip(polygons[0][::2], polygons[0][1::2], strict=True)
        return [part for x, y in pairs for part in (x / width, y / height)]
    x, y, w, h = entry["bbox"]
    return [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]


def _samples(
    places: Sequence[Place], described: Described, classes: Sequence[str], findings: Findings
) -> Samples:
    at = {name: i for i, name in enumerate(classes)}
    images, objects = [], []
    for place in places:
        for path, listing in zip(place.images, place.labels_of(), strict=True):
            try:
                width, height = image_size(path)
            except ValueError as error:
                findings.fault("unreadable image|unreadable images", str(error))
                continue
            images.append({"file_name": str(path), "height": height, "width": width})
            found = _labels(listing, described, (width, height), findings)
            for entry in found:
                label = at[described.classes[entry["label"]]]
                objects.append({"image_id": len(images)} | entry | {"label": label})
    content = assemble(images, objects, classes)
    return Samples(str(places[0].origin), content, [entry["id"] for entry in content["images"]])


def _labels(
    path: Path, described: Described, size: tuple[int, int], findings: Findings
) -> list[Content]:
    """Return the objects of a label file that can be used; none if there is no such file."""
    if not path.is_file():
        return []
    try:
        text = read_text(path)
    except ValueError as error:
        findings.fault("unreadable label file|unreadable label files", str(error))
        return []
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            found.append(
                parse_line(line, len(described.classes), size, keypoints=described.keypoints)
            )
        except ValueError as error:
            what = f"{path.parent.name}/{path.name}:{number}: {error}"
            findings.fault("label line that makes no sense|label lines that make no sense", what)
    return found


def parse_line(line: str, classes: int, size: tuple[int, int], *, keypoints: int = 0) -> Content:
    """Return ``label``, ``bbox`` and maybe ``segmentation`` of a line.

    Args:
        line: class and numbers.
        classes: how many there are.
        size: (width, height) of the image in pixels.
        keypoints: numbers behind the box, for pose labels.

    Raises:
        ValueError: saying what is wrong.
    """
    width, height = size
    words = line.split()
    try:
        label, numbers = float(words[0]), [float(word) for word in words[1:]]
    except ValueError as error:
        raise ValueError(f"{line!r} is not a class and numbers") from error
    if not label.is_integer() or not 0 <= label < classes:
        raise ValueError(f"class {words[0]}; the names are {classes}, counted from 0")
    if keypoints and len(numbers) == 4 + keypoints:
        numbers = numbers[:4]
    elif keypoints and len(numbers) != 4:
        raise ValueError(
            f"{len(numbers)} numbers; with kpt_shape a box and {keypoints} are expected"
        )
    if not all(math.isfinite(n) and abs(n) <= _LARGEST for n in numbers):
        raise ValueError("numbers above 1; they must be shares of the image's width and height")
    if len(numbers) == 4:
        x, y, w, h = numbers
        box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        return {"label": int(label), "bbox": box}
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"{len(numbers)} numbers; expected 4 (box) or pairs (polygon)")
    polygon = [part * (height if i % 2 else width) for i, part in enumerate(numbers)]
    try:
        check_extent(polygon, (height, width))
    except ValueError as error:
        raise ValueError(f"a polygon {error}") from error
    x, y = polygon[::2], polygon[1::2]
    box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    return {"label": int(label), "bbox": box, "segmentation": [polygon]}


def _check_labels(root: Path, places: Mapping[Split, Sequence[Place]]) -> None:
    """Refuse a data set whose labels lie where nobody looks: all would be background."""
    expected = [path for own in places.values() for place in own for path in place.labels_of()]
    if expected and not any(path.is_file() for path in expected):
        raise ValueError(
            f"{root}: none of the {len(expected)} images has a label file; the first is expected "
            f"at {expected[0]}"
        )


def _note_unused(root: Path, places: Mapping[Split, Sequence[Place]], findings: Findings) -> None:
    """Count the images of no split, and the label files without an image."""
    every = [place for own in places.values() for place in own]
    used = {os.fspath(path) for place in every for path in place.images}
    labels = {os.fspath(path) for place in every for path in place.labels_of()}
    folders = {os.path.dirname(path) for path in labels}
    images, lost = [], []
    for path in files_below(root):
        if is_image_name(path):
            images += [path] if path not in used else []
        elif path.lower().endswith(".txt") and path not in labels:
            stem = os.path.splitext(os.path.basename(path))[0].lower()
            if os.path.dirname(path) in folders and stem != "classes" and not split_of(stem):
                lost.append(path)
    what = f"of no split, first {os.path.relpath(min(images), root)}" if images else ""
    findings.note("image not used|images not used", count=len(images), what=what)
    what = f"first {os.path.basename(min(lost))}" if lost else ""
    findings.note("label file without image|label files without image", count=len(lost), what=what)


FORMAT = Format(
    name="yolo",
    title="YOLO",
    layout="data.yaml with images/ and labels/",
    sign=sign,
    read=read,
    write=write,
)
