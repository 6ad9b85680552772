"""Tiny valid data sets in every layout: coloured discs and squares on noise, with their masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from rmt.segmentation.classes import ADE20K, CITYSCAPES, VOC

SHAPES = ("ground", "disc", "square")


def toy(
    root: str | Path, layout: str = "folder", *, images: int = 6, size: tuple[int, int] = (48, 64)
) -> Path:
    """Write a data set of three classes and return its folder.

    Args:
        root: folder to write into, made if absent.
        layout: ``folder``, ``ade20k``, ``cityscapes`` or ``voc``.
        images: in each of the training and validation parts.
        size: (height, width) of the images; every second one is 8 pixels lower and wider.

    Raises:
        ValueError: for an unknown layout.
    """
    root = Path(root)
    if layout not in _WRITERS:
        raise ValueError(f"unknown layout {layout!r} (known: {', '.join(_WRITERS)})")
    for seed, part in enumerate(("train", "val")):
        for i in range(images):
            height, width = size
            drawn = draw(1000 * seed + i, height - 8 * (i % 2), width + 8 * (i % 2))
            _WRITERS[layout](root, part, f"{part}_{i}", *drawn)
    if layout == "folder":
        (root / "classes.txt").write_text("\n".join(SHAPES) + "\n")
    return root


def draw(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image (H, W, 3) and its classes (H, W), indices into :data:`SHAPES`."""
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 120, (height, width, 3)).astype(np.uint8)
    labels = np.zeros((height, width), dtype=np.uint8)
    y, x = np.mgrid[:height, :width]
    radius = max(1, min(height, width) // 6)
    for label, colour in ((1, (220, 60, 60)), (2, (60, 80, 220))):
        cy, cx = rng.integers(0, height), rng.integers(0, width)
        dy, dx = abs(y - cy), abs(x - cx)
        inside = dy**2 + dx**2 <= radius**2 if label == 1 else np.maximum(dy, dx) <= radius
        labels[inside] = label
        noise = rng.integers(-30, 31, (int(inside.sum()), 3))
        image[inside] = (np.array(colour) + noise).clip(0, 255)
    return image, labels


def _folder(root: Path, part: str, stem: str, image: np.ndarray, labels: np.ndarray) -> None:
    _save(image, root / "images" / part / f"{stem}.jpg")
    _save(labels, root / "masks" / part / f"{stem}.png")


def _ade20k(root: Path, part: str, stem: str, image: np.ndarray, labels: np.ndarray) -> None:
    folder = {"train": "training", "val": "validation"}[part]
    names = np.array([ADE20K.index(name) for name in ("wall", "sky", "floor")], dtype=np.uint8)
    values = names[labels] + 1
    values[0] = 0  # unlabelled
    _save(image, root / "images" / folder / f"ADE_{stem}.jpg")
    _save(values, root / "annotations" / folder / f"ADE_{stem}.png")


def _cityscapes(root: Path, part: str, stem: str, image: np.ndarray, labels: np.ndarray) -> None:
    values = np.array([CITYSCAPES["road"], CITYSCAPES["car"], 3], dtype=np.uint8)[labels]
    _save(image, root / "leftImg8bit" / part / "town" / f"{stem}_leftImg8bit.png")
    _save(values, root / "gtFine" / part / "town" / f"{stem}_gtFine_labelIds.png")


def _voc(root: Path, part: str, stem: str, image: np.ndarray, labels: np.ndarray) -> None:
    values = np.array([0, VOC.index("cat"), VOC.index("person")], dtype=np.uint8)[labels]
    values[0] = 255  # VOC leaves outlines out
    _save(image, root / "JPEGImages" / f"{stem}.jpg")
    _save(values, root / "SegmentationClass" / f"{stem}.png", palette=True)
    listing = root / "ImageSets" / "Segmentation" / f"{part}.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    with listing.open("a") as file:
        file.write(f"{stem}\n")


def _save(pixels: np.ndarray, path: Path, *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels)
    if palette:
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    picture.save(path)


_WRITERS = {"folder": _folder, "ade20k": _ade20k, "cityscapes": _cityscapes, "voc": _voc}
