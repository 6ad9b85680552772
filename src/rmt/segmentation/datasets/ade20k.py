"""ADE20K as its scene-parsing benchmark ships it, or data of one's own in this layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rmt.data.formats import Format, Source
from rmt.data.splits import Split
from rmt.segmentation.classes import ADE20K
from rmt.segmentation.datasets.class_file import Coding, coding_of
from rmt.segmentation.datasets.drawn import save
from rmt.segmentation.datasets.pairs import folders_of, read_folders
from rmt.segmentation.masks import plain_table
from rmt.segmentation.recipe import Data
from rmt.segmentation.samples import Samples


def sign(root: Path) -> str | None:
    """Return the folder of annotations beside that of images."""
    found = folders_of(root, ("annotations",)) if root.is_dir() else None
    return f"{found[1].name}/ beside {found[0].name}/" if found else None


def read(source: Source[Data]) -> Mapping[Split, Samples]:
    """Read ``images/training`` with ``annotations/training``, and ``validation`` likewise.

    Without ``classes.txt`` the classes are ADE20K's 150; in masks 0 is unlabelled and 1 the first.

    Raises:
        ValueError: if there are no images with masks.
    """
    root, data = source.root, source.data
    table = plain_table(len(ADE20K), reduce_zero_label=True, ignore_index=data.ignore_index)
    coding = coding_of(root, data, source.findings) or Coding(ADE20K, table)
    images, masks = folders_of(root, ("annotations",)) or (root / "images", root / "annotations")
    return read_folders(images, masks, coding, source.findings)


def write(root: Path, split: Split, stem: str, image: np.ndarray, labels: np.ndarray) -> None:
    """Write an image and its labels, as wall, sky and floor, the first line unlabelled."""
    folder = {"train": "training", "val": "validation"}.get(split, split)
    names = np.array([ADE20K.index(name) for name in ("wall", "sky", "floor")], dtype=np.uint8)
    values = names[labels] + 1
    values[0] = 0
    save(image, root / "images" / folder / f"ADE_{stem}.jpg")
    save(values, root / "annotations" / folder / f"ADE_{stem}.png")


FORMAT = Format(
    name="ade20k",
    title="ADE20K",
    layout="images/ and annotations/",
    sign=sign,
    read=read,
    write=write,
)
