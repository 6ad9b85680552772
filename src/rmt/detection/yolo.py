"""YOLO: one TXT file an image, a line an object: class, then centre and size as shares of 1.

A line with more numbers is a polygon (class, x0, y0, x1, y1, ...), as segmentation labels are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from rmt.data.images import read_image
from rmt.detection import coco


def read_names(path: Path) -> list[str]:
    """Return the class names of a ``data.yaml`` (``names:`` a list, or a mapping from numbers).

    Raises:
        ValueError: if it has none, or is no YAML.
    """
    try:
        described = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from error
    names = described.get("names") if isinstance(described, dict) else None
    if not names:
        raise ValueError(f"{path} has no 'names'")
    if isinstance(names, dict) and names.keys() == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list):
        raise ValueError(
            f"{path} has names {names!r}; expected a list, or a mapping from the numbers 0, 1, ..."
        )
    return [str(name) for name in names]


def read(images: Sequence[Path], labels: Path, classes: Sequence[str]) -> dict[str, Any]:
    """Return a data set, with absolute image paths, from images and a folder of TXT files.

    An image without a file, or with an empty one, has no objects.

    Raises:
        ValueError: naming file and line where something is wrong.
    """
    described, objects = [], []
    for number, path in enumerate(images, start=1):
        width, height = _size(path)
        described.append({"file_name": str(path), "height": height, "width": width})
        listing = labels / f"{path.stem}.txt"
        if not listing.is_file():
            continue
        for i, line in enumerate(listing.read_text().splitlines(), start=1):
            if line.strip():
                entry = _parse(line, f"{listing}:{i}", len(classes), width, height)
                objects.append({"image_id": number, **entry})
    return coco.assemble(described, objects, classes)


def write(folder: Path, content: dict[str, Any]) -> None:
    """Write a data set as one TXT file an image into ``folder``; run-length masks become boxes."""
    folder.mkdir(parents=True, exist_ok=True)
    label = {entry["id"]: i for i, entry in enumerate(content["categories"])}
    for image in content["images"]:
        width, height = image["width"], image["height"]
        lines = []
        for entry in content["annotations"]:
            if entry["image_id"] != image["id"] or entry["iscrowd"]:
                continue
            polygons = entry.get("segmentation")
            if isinstance(polygons, list) and len(polygons) == 1:
                pairs = zip(polygons[0][::2], polygons[0][1::2], strict=True)
                numbers = [part for x, y in pairs for part in (x / width, y / height)]
            else:
                x, y, w, h = entry["bbox"]
                numbers = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
            lines.append(" ".join([str(label[entry["category_id"]]), *map(repr, numbers)]))
        text = "".join(f"{line}\n" for line in lines)
        (folder / f"{Path(image['file_name']).stem}.txt").write_text(text)


def _parse(line: str, where: str, classes: int, width: int, height: int) -> dict[str, Any]:
    words = line.split()
    try:
        label, numbers = int(words[0]), [float(word) for word in words[1:]]
    except ValueError as error:
        raise ValueError(f"{where}: {line!r} is not a class and numbers") from error
    if not 0 <= label < classes:
        raise ValueError(f"{where}: class {label}; data.yaml names {classes} classes")
    if len(numbers) == 4:
        x, y, w, h = numbers
        box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        return {"label": label, "bbox": box}
    if len(numbers) < 6 or len(numbers) % 2:
        raise ValueError(f"{where}: {len(numbers)} numbers; expected 4 (box) or pairs (polygon)")
    polygon = [part * (height if i % 2 else width) for i, part in enumerate(numbers)]
    x, y = polygon[::2], polygon[1::2]
    box = [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    return {"label": label, "bbox": box, "segmentation": [polygon]}


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:  # the header is enough, unless the camera lay on its side
            if not image.getexif().get(0x0112, 1) > 4:
                return image.size
    except OSError:
        pass  # read_image says what is wrong
    return read_image(path).size
