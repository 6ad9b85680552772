"""Images with objects of one split, and what of them is trained on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rmt.data.images import read_image_like
from rmt.detection.annotations import Content
from rmt.detection.rle import to_mask
from rmt.files import digest_of_samples, identity


@dataclass(frozen=True)
class Samples:
    """Images with objects of one split.

    Attributes:
        origin: file or folder that the annotations come from.
        content: the data set in COCO's form, clean, with absolute paths of the images.
        ids: of the images that belong to this split.
    """

    origin: str
    content: Content = field(repr=False)
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

    def label(self, index: int) -> object:
        """Return the annotations of an image."""
        return self.objects.get(self.ids[index])

    def join(self, other: Samples) -> Samples:
        """Return these images and others of the same data set."""
        return replace(self, ids=[*self.ids, *other.ids])

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return str(self.path(index))

    def path(self, index: int) -> Path:
        """Return an image's file."""
        return Path(self.images[self.ids[index]]["file_name"])

    def image(self, index: int) -> Image.Image:
        """Return an image as RGB.

        Raises:
            ValueError: naming file and id if it cannot be read, or has not the size that the
                annotations say.
        """
        entry = self.images[self.ids[index]]
        try:
            image = read_image_like(self.path(index), (entry["width"], entry["height"]))
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

        Crowds and boxes under one pixel are left out, as in the release, and objects to be ignored.

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
        kept = [own for own in self.objects.get(entry["id"], ()) if trainable(own, height, width)]
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
                        f"{self.origin}: annotation id {own['id']} has no segmentation; a model "
                        "with masks needs one for each object"
                    )
            drawn = [to_mask(own["segmentation"], height, width) for own in kept]
            target["masks"] = np.array(drawn, dtype=np.uint8).reshape(-1, height, width)
        return target

    def has_objects(self, index: int) -> bool:
        """Return whether an image has anything to train on."""
        entry = self.images[self.ids[index]]
        height, width = entry["height"], entry["width"]
        own = self.objects.get(entry["id"], ())
        return any(trainable(each, height, width) for each in own)

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
    """Return whether an object is trained on: it is one, not to be ignored, and can be seen."""
    return not entry["iscrowd"] and not entry.get("ignore") and visible(entry, height, width)


def visible(entry: dict[str, Any], height: int, width: int) -> bool:
    """Return whether a box has at least one pixel on each side, an area, and touches its image."""
    x, y, w, h = entry["bbox"]
    seen_w, seen_h = min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)
    return seen_w > 0 and seen_h > 0 and w >= 1 and h >= 1 and entry["area"] > 0
