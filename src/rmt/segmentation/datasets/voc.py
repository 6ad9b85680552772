"""Pascal VOC's segmentation as it ships, or one's own in this layout, as CVAT exports it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rmt.data.findings import Findings
from rmt.data.folders import image_suffixes
from rmt.data.formats import Format, Source
from rmt.data.named_files import FileFinder
from rmt.data.splits import SPLITS, Split
from rmt.data.text import read_lines
from rmt.data.voc_lists import find_lists, names_of
from rmt.segmentation.classes import VOC
from rmt.segmentation.datasets.class_file import Coding, coding_of
from rmt.segmentation.datasets.drawn import save
from rmt.segmentation.datasets.pairs import Pairs, pair, samples_of
from rmt.segmentation.masks import plain_table
from rmt.segmentation.recipe import Data
from rmt.segmentation.samples import Samples

_IMAGES, _MASKS = "JPEGImages", "SegmentationClass"


def sign(root: Path) -> str | None:
    """Return the folder of masks."""
    found = _masks(root)
    return f"{found.name}/" if found else None


def read(source: Source[Data]) -> Mapping[Split, Samples]:
    """Read the images that ``ImageSets/Segmentation/SPLIT.txt`` names; without lists, all.

    Without ``classes.txt`` (or CVAT's ``labelmap.txt``) the classes are VOC's 21.

    Raises:
        ValueError: if there are no images with masks.
    """
    root, data, findings = source.root, source.data, source.findings
    table = plain_table(len(VOC), ignore_index=data.ignore_index)
    coding = coding_of(root, data, source.findings) or Coding(VOC, table)
    lists = find_lists(root / "ImageSets" / "Segmentation")
    if not lists:
        masks = _masks(root) or root / _MASKS
        return {"train": samples_of(pair(root / _IMAGES, masks, findings), coding)}
    found: dict[Split, Samples] = {}
    for split in (each for each in SPLITS if each in lists):
        pairs = _listed(lists[split], root, findings, optional=split == "test")
        if pairs:
            found[split] = samples_of(pairs, coding)
    return found


def write(root: Path, split: Split, stem: str, image: np.ndarray, labels: np.ndarray) -> None:
    """Write an image and its labels, as background, cat and person, the first line ignored."""
    values = np.array([0, VOC.index("cat"), VOC.index("person")], dtype=np.uint8)[labels]
    values[0] = 255  # VOC leaves outlines out
    save(image, root / _IMAGES / f"{stem}.jpg")
    save(values, root / _MASKS / f"{stem}.png", palette=True)
    listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    with listing.open("a", encoding="utf-8") as file:
        file.write(f"{stem}\n")


def _listed(listing: Path, root: Path, findings: Findings, *, optional: bool) -> Pairs | None:
    """Return the images of a list with their masks; None if none has one, where that may be."""
    images = FileFinder(root / _IMAGES, root=root)
    masks = FileFinder(_masks(root) or root / _MASKS, root=root)
    lines = read_lines(listing)
    of_images = [_named(line, (".jpg", *image_suffixes())) for line in lines]
    of_masks = [_named(line, (".png",)) for line in lines]
    found = [
        (images.find(*own), masks.find(*theirs))
        for own, theirs in zip(of_images, of_masks, strict=True)
    ]
    kept = [(image, mask) for image, mask in found if image and mask]
    if not kept:
        if optional:
            what = f"{listing.name} names no image with a mask"
            findings.note("image not used|images not used", count=len(found), what=what)
            return None
        raise ValueError(f"{listing} names {len(found)} images; none has a file and a mask")
    for at, (image, mask) in enumerate(found):
        what = f"{lines[at]} of {listing.name}"
        if image is None:
            images.report(*of_images[at], findings=findings, what=what)
        elif mask is None:
            masks.report(*of_masks[at], findings=findings, what=what, thing="mask")
    return [image for image, _ in kept], [mask for _, mask in kept]


def _masks(root: Path) -> Path | None:
    """Return the folder of masks; labelme keeps arrays in the first and images in the second."""
    found = [root / name for name in (_MASKS, f"{_MASKS}PNG") if (root / name).is_dir()]
    return next((folder for folder in found if any(folder.glob("*.png"))), next(iter(found), None))


def _named(line: str, suffixes: tuple[str, ...]) -> list[str]:
    """Return what the file of a line may be called."""
    return [f"{name}{suffix}" for name in names_of(line) for suffix in suffixes]


FORMAT = Format(
    name="voc",
    title="Pascal VOC",
    layout=f"{_IMAGES}/ and {_MASKS}/",
    sign=sign,
    read=read,
    write=write,
)
