"""Cityscapes as it ships, with its 19 evaluated classes, or data of one's own in this layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rmt.data.formats import Format, Source
from rmt.data.splits import Split
from rmt.segmentation.classes import CITYSCAPES
from rmt.segmentation.datasets.class_file import Coding, coding_of
from rmt.segmentation.datasets.drawn import save
from rmt.segmentation.datasets.pairs import of_splits, split_folders
from rmt.segmentation.masks import INVALID
from rmt.segmentation.recipe import Data
from rmt.segmentation.samples import Samples
from rmt.segmentation.segmenter import IGNORED

_IMAGES, _MASKS = "leftImg8bit", "gtFine"


def sign(root: Path) -> str | None:
    """Return the folder of images."""
    return f"{_IMAGES}/" if (root / _IMAGES).is_dir() else None


def read(source: Source[Data]) -> Mapping[Split, Samples]:
    """Read ``leftImg8bit/SPLIT`` with the ``labelIds`` in ``gtFine/SPLIT``.

    Cityscapes keeps the labels of its test split to itself: it is not read.

    Raises:
        ValueError: if there are no images with masks.
    """
    root, data = source.root, source.data
    own = coding_of(root, data, source.findings)
    # Every value up to 33 is in use; those that are not evaluated are ignored.
    table = np.full(max(256, data.ignore_index + 1), INVALID, dtype=np.int16)
    table[:34] = table[255] = IGNORED
    table[list(CITYSCAPES.values())] = np.arange(len(CITYSCAPES))
    table[data.ignore_index] = IGNORED
    folders, _ = split_folders(root / _IMAGES)
    if own is None and len(folders) > 1 and "test" in folders:
        del folders["test"]
        kind = "split not used|splits not used"
        source.findings.note(kind, what="Cityscapes' test labels are not public")
    if not folders:
        raise ValueError(f"{root / _IMAGES} holds no folder train or val")
    return of_splits(
        {split: (path, root / _MASKS / path.name) for split, path in folders.items()},
        own or Coding(tuple(CITYSCAPES), table),
        source.findings,
        ends=("_leftimg8bit", "_gtfine_labelids"),
    )


def write(root: Path, split: Split, stem: str, image: np.ndarray, labels: np.ndarray) -> None:
    """Write an image and its labels, as road, car and a value that is not evaluated."""
    values = np.array([CITYSCAPES["road"], CITYSCAPES["car"], 3], dtype=np.uint8)[labels]
    save(image, root / _IMAGES / split / "town" / f"{stem}_leftImg8bit.png")
    save(values, root / _MASKS / split / "town" / f"{stem}_gtFine_labelIds.png")


FORMAT = Format(
    name="cityscapes",
    title="Cityscapes",
    layout=f"{_IMAGES}/ and {_MASKS}/",
    sign=sign,
    read=read,
    write=write,
)
