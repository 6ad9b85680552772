"""Where images with boxes come from: COCO JSON, Pascal VOC XML, YOLO TXT, in the usual layouts."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rmt.data.images import SUFFIXES, read_image
from rmt.data.splits import Splits
from rmt.detection import coco, voc, yolo
from rmt.detection.recipe import Data
from rmt.files import digest_of_samples, identity

log = logging.getLogger(__name__)
_PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class Samples:
    """Images with objects of one split.

    Attributes:
        origin: file or folder that the annotations come from.
        folder: that image names start from.
        content: the data set in COCO's form, checked.
        ids: of the images that belong to this split.
    """

    origin: str
    folder: Path
    content: dict[str, Any] = field(repr=False)
    ids: Sequence[int] = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names, in the order of the file's categories."""
        return tuple(entry["name"] for entry in self.content["categories"])

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Return the category id of each label."""
        return tuple(entry["id"] for entry in self.content["categories"])

    @property
    def has_masks(self) -> bool:
        """Return whether every object has a mask."""
        return all(entry.get("segmentation") for entry in self.content["annotations"])

    @cached_property
    def images(self) -> dict[int, dict[str, Any]]:
        """Return the entry of each image by its id."""
        return {entry["id"]: entry for entry in self.content["images"]}

    @cached_property
    def objects(self) -> dict[int, list[dict[str, Any]]]:
        """Return the annotations of each image by its id."""
        by_image = defaultdict(list)
        for entry in self.content["annotations"]:
            by_image[entry["image_id"]].append(entry)
        return dict(by_image)

    def digest(self) -> str:
        """Return the digest of image names, sizes and annotations."""
        return digest_of_samples(
            (identity(self.path(i)), self.objects.get(own)) for i, own in enumerate(self.ids)
        )

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return str(self.path(index))

    def path(self, index: int) -> Path:
        """Return an image's file."""
        return self.folder / self.images[self.ids[index]]["file_name"]

    def image(self, index: int) -> Image.Image:
        """Return an image as RGB.

        Raises:
            ValueError: naming file and id if it cannot be read, or has not the size that the
                annotations say.
        """
        entry = self.images[self.ids[index]]
        try:
            image = read_image(self.path(index))
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{self.origin}, image id {entry['id']}: {error}") from error
        if image.size != (entry["width"], entry["height"]):
            raise ValueError(
                f"{self.origin}, image id {entry['id']}: {self.path(index)} has {image.width}x"
                f"{image.height} pixels, the annotations say {entry['width']}x{entry['height']}"
            )
        return image

    def target(self, index: int, *, masks: bool) -> dict[str, np.ndarray]:
        """Return an image's objects to learn from, boxes cut to the image.

        Crowds and boxes under one pixel are left out, as in the release.

        Args:
            index: of the image in this split.
            masks: whether to draw them.

        Returns:
            ``boxes`` (N, 4) float32, corners; ``labels`` (N,); and maybe ``masks`` (N, H, W) of 8
            bits.

        Raises:
            ValueError: naming the annotation that lacks a needed mask.
        """
        entry = self.images[self.ids[index]]
        height, width = entry["height"], entry["width"]
        label_of = {category: i for i, category in enumerate(self.category_ids)}
        kept = [
            own
            for own in self.objects.get(entry["id"], ())
            if not own["iscrowd"] and trainable(own, height, width)
        ]
        boxes = np.array([own["bbox"] for own in kept], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        limits = np.array([width, height, width, height], dtype=np.float32)
        target = {
            "boxes": boxes.clip(0, limits),
            "labels": np.array([label_of[own["category_id"]] for own in kept], dtype=np.int64),
        }
        if masks:
            for own in kept:
                if not own.get("segmentation"):
                    raise ValueError(
                        f"{self.origin}: annotation id {own['id']} has no segmentation; a model with "
                        "masks needs one for each object"
                    )
            drawn = [coco.to_mask(own["segmentation"], height, width) for own in kept]
            target["masks"] = np.array(drawn, dtype=np.uint8).reshape(-1, height, width)
        return target

    def has_objects(self, index: int) -> bool:
        """Return whether an image has anything to train on."""
        entry = self.images[self.ids[index]]
        height, width = entry["height"], entry["width"]
        own = self.objects.get(entry["id"], ())
        return any(not o["iscrowd"] and trainable(o, height, width) for o in own)

    def take(self, indices: Sequence[int]) -> Samples:
        """Return some of the images."""
        return replace(self, ids=[self.ids[i] for i in indices])

    def only(self) -> dict[str, Any]:
        """Return the data set in COCO's form with this split's images alone."""
        chosen = set(self.ids)
        return {
            "images": [entry for entry in self.content["images"] if entry["id"] in chosen],
            "annotations": [a for a in self.content["annotations"] if a["image_id"] in chosen],
            "categories": self.content["categories"],
        }


def trainable(entry: dict[str, Any], height: int, width: int) -> bool:
    """Return whether a box has at least one pixel on each side, an area, and touches its image."""
    x, y, w, h = entry["bbox"]
    seen_w, seen_h = min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)
    return seen_w > 0 and seen_h > 0 and w >= 1 and h >= 1 and entry["area"] > 0


def open_splits(data: Data) -> Splits[Samples]:
    """Find the images and boxes that a recipe's ``data`` names, and split them.

    A split that the data brings is kept; otherwise ``val_fraction`` of the images is held out, the
    same ones each time.

    Raises:
        ValueError: if there is nothing, an unknown layout, wrong annotations, or images missing.
    """
    parts = open_parts(data)
    train, val, test = (parts.get(part) for part in _PARTS)
    if val is None and train is not None:
        train, val = _split(train, data.val_fraction)
    if train is not None and not data.keep_empty:
        train = train.take([i for i in range(len(train)) if train.has_objects(i)])
        if not len(train):
            raise ValueError(f"{train.origin} has no image with an object to train on")
    judged = val or test
    assert judged is not None  # some part is present, and a training part alone has been split
    return Splits(train, judged, test)


def open_parts(data: Data) -> dict[str, Samples]:
    """Read the parts that a data set brings, by ``train``, ``val`` and ``test``, with every image.

    One that is not divided is all ``train``. What cannot be trained on is counted in the log.

    Raises:
        ValueError: as :func:`open_splits`.
    """
    root = Path(data.root)
    if not data.root or not root.is_dir():
        raise ValueError(f"data.root {data.root!r} is no folder; name that of the data set")
    kind = data.format if data.format != "auto" else guess(root)
    read = _READERS[kind]
    found = {part: read(root, names) for part, names in _PARTS.items()}
    if all(samples is None for samples in found.values()):
        found["train"] = read(root, ())
    parts = {part: samples for part, samples in found.items() if samples is not None}
    if not parts:
        raise ValueError(f"{root} holds no images in the layout of {kind!r}")
    first = next(iter(parts.values()))
    for samples in parts.values():
        if samples.classes != first.classes:
            raise ValueError(
                f"{samples.origin} has the classes {samples.classes}, {first.origin} "
                f"{first.classes}; they must be the same, in the same order"
            )
        _report(samples)
    return parts


def guess(root: Path) -> str:
    """Return the format that a folder looks like.

    Raises:
        ValueError: if it is none.
    """
    for kind, patterns in _SIGNS.items():
        if any(next(root.glob(pattern), None) for pattern in patterns):
            return kind
    raise ValueError(
        f"{root} has none of the known layouts: COCO has annotations/*.json or "
        "PART/_annotations.coco.json, YOLO data.yaml with images/ and labels/, VOC an .xml an image"
    )


_SIGNS = {
    "coco": ("annotations/*.json", "*.json", "*/_annotations.coco.json"),
    "yolo": ("data.yaml", "*.yaml"),
    "voc": ("*.xml", "*/*.xml", "*/*/*.xml"),
}


def _coco(root: Path, names: Sequence[str]) -> Samples | None:
    """Read PART/_annotations.coco.json, annotations/instances_PART*.json or PART.json."""
    if not names:
        alone = [*root.glob("annotations/*.json"), *root.glob("*.json")]
        if len(alone) != 1:
            raise ValueError(f"{root}: expected train and val JSON files, or one of all; {alone}")
        return _open(alone[0], _first(root / "images", root))
    for name in names:
        own = root / name / "_annotations.coco.json"
        if own.is_file():
            return _open(own, own.parent)
        for pattern in (f"instances_{name}*.json", f"{name}.json", f"{name}_*.json"):
            for path in (*sorted(root.glob(f"annotations/{pattern}")), *sorted(root.glob(pattern))):
                year = path.stem.removeprefix("instances_")
                below = (year, f"images/{year}", name, f"images/{name}", "images")
                return _open(path, _first(*(root / folder for folder in below), root))
    return None


def _voc(root: Path, names: Sequence[str]) -> Samples | None:
    """Read ImageSets/Main/PART.txt of VOC itself, or all XML files of a folder."""
    classes_file = root / "classes.txt"
    classes = classes_file.read_text().split("\n") if classes_file.is_file() else []
    classes = [name.strip() for name in classes if name.strip()]
    if not names:
        found = sorted(root.rglob("*.xml"))
        return _own(voc.read(found, classes), root) if found else None
    for name in names:
        listing = root / "ImageSets" / "Main" / f"{name}.txt"
        if listing.is_file():
            files = [root / "Annotations" / f"{stem}.xml" for stem in listing.read_text().split()]
            if lost := [path for path in files if not path.is_file()]:
                raise ValueError(f"{listing} names {len(lost)} files that are absent: {lost[0]}")
            return _own(voc.read(files, classes or _voc_classes(root)), listing)
        if found := sorted((root / name).rglob("*.xml")):
            return _own(voc.read(found, classes or _voc_classes(root)), root / name)
    return None


def _voc_classes(root: Path) -> list[str]:
    """Return all class names of a data set, so that its parts count them alike."""
    everything = voc.read(sorted(root.rglob("*.xml")))
    return [entry["name"] for entry in everything["categories"]]


def _yolo(root: Path, names: Sequence[str]) -> Samples | None:
    """Read images/PART with labels/PART, or PART/images with PART/labels."""
    described = sorted(root.glob("*.yaml"))
    if not described:
        raise ValueError(f"{root} has no data.yaml that names the classes")
    classes = yolo.read_names(described[0])
    folders = [(root / "images" / n, root / "labels" / n) for n in names]
    folders += [(root / n / "images", root / n / "labels") for n in names]
    if not names:
        folders = [(root / "images", root / "labels"), (root, root)]
    for images, labels in folders:
        found = sorted(p for p in images.glob("*") if p.suffix.lower() in SUFFIXES)
        if found:
            return _own(yolo.read(found, labels, classes), images)
    return None


_READERS: dict[str, Callable[[Path, Sequence[str]], Samples | None]] = {
    "coco": _coco,
    "voc": _voc,
    "yolo": _yolo,
}


def _open(path: Path, folder: Path) -> Samples:
    content = coco.read(path)
    lost = [entry for entry in content["images"] if not (folder / entry["file_name"]).is_file()]
    if lost:
        raise ValueError(
            f"{path}: {len(lost)} of {len(content['images'])} images are not in {folder}; the "
            f"first is id {lost[0]['id']}, {lost[0]['file_name']}"
        )
    return Samples(str(path), folder, content, [entry["id"] for entry in content["images"]])


def _own(content: dict[str, Any], origin: Path) -> Samples:
    ids = [entry["id"] for entry in content["images"]]
    return Samples(str(origin), Path(), coco.check(content, str(origin)), ids)


def _report(samples: Samples) -> None:
    """Log how many boxes are cut at the border or left out of training."""
    cut = dropped = 0
    for entry in samples.content["annotations"]:
        image = samples.images[entry["image_id"]]
        x, y, w, h = entry["bbox"]
        outside = min(x, y) < -0.5 or x + w > image["width"] + 0.5 or y + h > image["height"] + 0.5
        if not trainable(entry, image["height"], image["width"]):
            dropped += 1
        elif outside:
            cut += 1
    if cut or dropped:
        log.warning(
            "%s: %d boxes reach over their image and are cut, %d have no area or lie outside and "
            "are not trained on",
            samples.origin,
            cut,
            dropped,
        )


def _split(samples: Samples, fraction: float) -> tuple[Samples, Samples]:
    order = list(range(len(samples)))
    random.Random(0).shuffle(order)
    held = max(1, round(len(order) * fraction))
    if held >= len(order):
        raise ValueError(f"{samples.origin} has {len(order)} images; too few to hold some out")
    return samples.take(sorted(order[held:])), samples.take(sorted(order[:held]))


def _first(*folders: Path) -> Path:
    return next((folder for folder in folders if folder.is_dir()), folders[-1])
