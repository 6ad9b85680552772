"""A data set of one's own: ``images/``, ``masks/`` and ``classes.txt``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rmt.data.formats import Format, Source
from rmt.data.splits import Split
from rmt.segmentation.datasets.class_file import (
    coding_of,
    coding_of_model,
    find_class_file,
)
from rmt.segmentation.datasets.drawn import SHAPES, save
from rmt.segmentation.datasets.pairs import folders_of, of_splits, read_folders, split_folders
from rmt.segmentation.recipe import Data
from rmt.segmentation.samples import Samples

_MASKS = ("masks", "mask", "labels", "annotations")


def sign(root: Path) -> str | None:
    """Return the folder of masks, or else the file of class names."""
    if not root.is_dir():
        return None
    found = folders_of(root, _MASKS[:3]) or next(iter(_by_split(root).values()), None)
    if found and found[0] == found[1]:
        return f"masks beside images in {found[0].name}/"
    if found:
        return f"{found[1].relative_to(root)}/ beside {found[0].name}/"
    named = find_class_file(root)
    return named.name if named and not (root / "SegmentationClass").is_dir() else None


def read(source: Source[Data]) -> Mapping[Split, Samples]:
    """Read ``images/SPLIT`` with ``masks/SPLIT``, or ``SPLIT/images`` with ``SPLIT/masks``.

    Without folders of splits all are ``train``.

    Raises:
        ValueError: if there is no ``classes.txt``, or no images with masks.
    """
    root, data, findings = source.root, source.data, source.findings
    coding = coding_of(root, data, findings) or coding_of_model(source.classes, data)
    if coding is None:
        raise ValueError(f"no {root / 'classes.txt'}: write the class names into it, line by line")
    if by_split := _by_split(root):
        return of_splits(by_split, coding, findings)
    images, masks = folders_of(root, _MASKS) or (root / "images", root / "masks")
    return read_folders(images, masks, coding, findings)


def write(root: Path, split: Split, stem: str, image: np.ndarray, labels: np.ndarray) -> None:
    """Write an image (H, W, 3) and its labels (H, W), indices into ``SHAPES``."""
    save(image, root / "images" / split / f"{stem}.jpg")
    save(labels, root / "masks" / split / f"{stem}.png")
    (root / "classes.txt").write_text("\n".join(SHAPES) + "\n", encoding="utf-8")


def _by_split(root: Path) -> dict[Split, tuple[Path, Path]]:
    """Return the folders of images and masks in a folder per split."""
    folders, _ = split_folders(root)
    return {split: own for split, at in folders.items() if (own := folders_of(at, _MASKS))}


FORMAT = Format(
    name="folder",
    title="images and masks",
    layout="images/, masks/ and classes.txt",
    sign=sign,
    read=read,
    write=write,
)
