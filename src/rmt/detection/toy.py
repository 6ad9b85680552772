"""Tiny valid data sets in every format: discs and squares on noise, with boxes and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rmt.data.splits import Split
from rmt.detection.annotations import assemble
from rmt.detection.datasets import FORMATS
from rmt.detection.rle import to_rle

SHAPES = ("disc", "square")
_SPLITS: tuple[Split, ...] = ("train", "val")


def toy(
    root: str | Path, name: str = "coco", *, images: int = 6, size: tuple[int, int] = (64, 80)
) -> Path:
    """Write a data set of two classes in splits train and val; return its folder.

    Args:
        root: folder to write to; it is created if it does not exist.
        name: of a format.
        images: number of images per split; the last has no object, and in COCO's format the first
            has a crowd.
        size: (height, width) of the images, exchanged in every second one.

    Raises:
        ValueError: for an unknown format.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r} (known: {', '.join(FORMATS)})")
    write = FORMATS[name].write
    assert write is not None
    root = Path(root)
    for seed, split in enumerate(_SPLITS):
        described, objects, drawn = [], [], []
        for i in range(images):
            height, width = size if i % 2 else size[::-1]
            image, found = draw(1000 * seed + i, height, width, count=0 if i == images - 1 else 3)
            described.append({"file_name": f"{split}_{i}.png", "height": height, "width": width})
            objects += [{"image_id": i + 1, **own} for own in found]
            drawn.append(image)
        if name == "coco":
            objects.append(_crowd(described[0]))
        folder = write(root, split, assemble(described, objects, SHAPES))
        for entry, image in zip(described, drawn, strict=True):
            Image.fromarray(image).save(folder / entry["file_name"])
    return root


def draw(
    seed: int, height: int, width: int, *, count: int
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return an image (H, W, 3) and its objects: ``label``, ``bbox``, ``segmentation``."""
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 120, (height, width, 3)).astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    objects = []
    for _ in range(count):
        label, radius = int(rng.integers(2)), int(rng.integers(8, max(9, min(height, width) // 4)))
        cy, cx = (
            int(rng.integers(radius, height - radius)),
            int(rng.integers(radius, width - radius)),
        )
        dy, dx = abs(y + 0.5 - cy), abs(x + 0.5 - cx)
        inside = dy**2 + dx**2 <= radius**2 if label == 0 else np.maximum(dy, dx) <= radius
        noise = rng.integers(-20, 21, (int(inside.sum()), 3))
        image[inside] = (np.array([(230, 70, 60), (60, 90, 230)][label]) + noise).clip(0, 255)
        turns = np.linspace(0, 2 * np.pi, 16 if label == 0 else 4, endpoint=False)
        reach = radius if label == 0 else radius * 2**0.5
        start = 0 if label == 0 else np.pi / 4
        outline = np.stack([cx + reach * np.cos(turns + start), cy + reach * np.sin(turns + start)])
        objects.append(
            {
                "label": label,
                "bbox": [cx - radius, cy - radius, 2 * radius, 2 * radius],
                "segmentation": [outline.T.flatten().tolist()],
            }
        )
    return image, objects


def _crowd(image: dict[str, Any]) -> dict[str, Any]:
    height, width = image["height"], image["width"]
    mask = np.zeros((1, height, width))
    mask[0, :10, :20] = 1
    return {
        "image_id": 1,
        "label": 0,
        "bbox": [0, 0, 20, 10],
        "iscrowd": 1,
        "segmentation": to_rle(mask)[0],
    }
