"""Pascal VOC: one XML file an image, as VOC itself and most drawing tools write it.

VOC counts pixels from 1 and includes the last one; its boxes are taken as they are, corners in
pixels, as the tools mean them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rmt.data.images import read_image
from rmt.detection import coco


def read(files: Sequence[Path], classes: Sequence[str] = ()) -> dict[str, Any]:
    """Return a data set, with absolute image paths, from XML files.

    Args:
        files: one an image.
        classes: names in order; empty takes those that occur, in alphabetical order.

    Raises:
        ValueError: naming the file, and what is missing or wrong in it.
    """
    parsed = [_parse(path) for path in files]
    found = sorted({name for _, objects in parsed for name, _ in objects})
    classes = list(classes) or found
    if unknown := set(found) - set(classes):
        raise ValueError(f"objects of unlisted classes {sorted(unknown)} below {files[0].parent}")
    objects = [
        {"image_id": i, "label": classes.index(name), "bbox": box}
        for i, (_, own) in enumerate(parsed, start=1)
        for name, box in own
    ]
    return coco.assemble([image for image, _ in parsed], objects, classes)


def write(folder: Path, content: dict[str, Any]) -> None:
    """Write a data set as one XML file an image into ``folder``; masks are lost."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    for image in content["images"]:
        root = ElementTree.Element("annotation")
        _add(root, "filename", Path(image["file_name"]).name)
        size = ElementTree.SubElement(root, "size")
        for key, value in (("width", image["width"]), ("height", image["height"]), ("depth", 3)):
            _add(size, key, value)
        for entry in content["annotations"]:
            if entry["image_id"] != image["id"] or entry["iscrowd"]:
                continue
            thing = ElementTree.SubElement(root, "object")
            _add(thing, "name", names[entry["category_id"]])
            x, y, w, h = entry["bbox"]
            corners = ElementTree.SubElement(thing, "bndbox")
            for key, value in (("xmin", x), ("ymin", y), ("xmax", x + w), ("ymax", y + h)):
                _add(corners, key, value)
        path = folder / f"{Path(image['file_name']).stem}.xml"
        ElementTree.ElementTree(root).write(path, encoding="utf-8")


def _parse(path: Path) -> tuple[dict[str, Any], list[tuple[str, list[float]]]]:
    try:
        root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is no XML: {error}") from error
    image = _image_of(path, root.findtext("filename"))
    width, height = (root.findtext(f"size/{side}") for side in ("width", "height"))
    if not width or not height:
        width, height = read_image(image).size
    objects = []
    for i, entry in enumerate(root.iter("object")):
        name = entry.findtext("name")
        if not name:
            raise ValueError(f"{path}: object {i} has no <name>")
        corners = []
        for corner in ("xmin", "ymin", "xmax", "ymax"):
            text = entry.findtext(f"bndbox/{corner}")
            try:
                corners.append(float(text or ""))
            except ValueError as error:
                raise ValueError(f"{path}: object {i} has {corner} {text!r}, no number") from error
        x0, y0, x1, y1 = corners
        objects.append((name, [x0, y0, x1 - x0, y1 - y0]))
    try:
        size = {"height": int(float(height)), "width": int(float(width))}
    except (ValueError, OverflowError) as error:
        raise ValueError(
            f"{path} has width {width!r} and height {height!r}; expected numbers"
        ) from error
    return {"file_name": str(image), **size}, objects


def _image_of(path: Path, named: str | None) -> Path:
    """Return the image that an XML file speaks of: beside it, in JPEGImages/ or in images/."""
    folders = [path.parent, *(path.parents[1] / name for name in ("JPEGImages", "images"))]
    for folder in folders:
        if named and (folder / named).is_file():
            return folder / named
    for folder in folders:
        for found in sorted(folder.glob(f"{path.stem}.*")):
            if found.suffix.lower() != ".xml":
                return found
    raise ValueError(f"{path}: no image {named!r} beside it, in JPEGImages/ or in images/")


def _add(parent: ElementTree.Element, tag: str, value: Any) -> None:
    ElementTree.SubElement(parent, tag).text = str(value)
