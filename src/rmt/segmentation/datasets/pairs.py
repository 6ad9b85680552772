"""Which mask belongs to which image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from rmt.data.findings import Findings
from rmt.data.folders import (
    find_folder,
    image_suffixes,
    images_in,
    is_image_name,
    subfolders,
)
from rmt.data.splits import SPLITS, Split, sort_by_split
from rmt.segmentation.datasets.class_file import Coding
from rmt.segmentation.samples import Samples

#: Images with a mask each.
Pairs = tuple[list[Path], list[Path]]

_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")
# What tools add to the name of an image's mask, and of the image beside it.
_MASK_ENDS = (
    "_mask", "-mask", "_masks", "_label", "_labels", "_labelids", "_gtfine_labelids",
    "_labeltrainids", "_seg", "_segmentation", "_gt", "_groundtruth", "_annotation", "_l", "_matte",
    ".jpg", ".jpeg", ".png", "mask", "label",
)  # fmt: skip
# Those that tell masks from images in one folder, as Roboflow exports them.
_MIXED = ("_mask", "-mask", "_masks", "_labelids")
_IMAGE_ENDS = ("_leftimg8bit", "_image", "_img", "_im", "_rgb", "_sat", "image", "img")
#: Ends of an image's and of its mask's name.
Ends = tuple[str, str]
_SAME: Ends = ("", "")


def read_folders(
    images: Path, masks: Path, coding: Coding, findings: Findings
) -> dict[Split, Samples]:
    """Return the images of each split below a folder, with the masks at the same places.

    Without folders of splits all are ``train``. A test split without any mask is left out, as
    benchmarks keep its labels to themselves.

    Raises:
        ValueError: if a folder holds no image, or no image has a mask.
    """
    folders, others = split_folders(images)
    if not folders:
        return {"train": samples_of(pair(images, masks, findings), coding)}
    loose = [path for path in images.iterdir() if path.suffix.lower() in image_suffixes()]
    loose += [path for folder in others for path in images_in(folder)]
    kind, what = "image not used|images not used", f"of no split, in {images.name}"
    findings.note(kind, count=len(loose), what=what)
    below, _ = split_folders(masks)
    return of_splits(
        {
            split: (folder, below.get(split, masks / folder.name))
            for split, folder in folders.items()
        },
        coding,
        findings,
    )


def of_splits(
    folders: Mapping[Split, tuple[Path, Path]],
    coding: Coding,
    findings: Findings,
    *,
    ends: Ends | None = None,
) -> dict[Split, Samples]:
    """Return the samples of each split from its folders of images and masks."""
    found: dict[Split, Samples] = {}
    for split in (each for each in SPLITS if each in folders):
        images, masks = folders[split]
        if split == "test" and not images_in(masks):
            count = len(images_in(images))
            kind, what = "image not used|images not used", "the test split has no masks"
            findings.note(kind, count=count, what=what)
        else:
            found[split] = samples_of(pair(images, masks, findings, ends=ends), coding)
    return found


def split_folders(folder: Path) -> tuple[dict[Split, Path], list[Path]]:
    """Return the folder of each split, and the other ones."""
    inside = subfolders(folder) if folder.is_dir() else []
    return sort_by_split((path.name, path) for path in inside)


def samples_of(pairs: Pairs, coding: Coding) -> Samples:
    """Return pairs as samples."""
    return Samples(*pairs, coding.classes, coding.table, coding.palette)


def pair(images: Path, masks: Path, findings: Findings, *, ends: Ends | None = None) -> Pairs:
    """Return the images below a folder and the mask of each, at the same place below another.

    An image and its mask have the same name but for the suffix, or but for what tools add to it
    (``cat.jpg`` with ``cat_mask.png``): the ends that most names have are found by themselves.

    Args:
        images: folder, searched deep.
        masks: likewise.
        findings: counts images without a mask, and masks without an image.
        ends: of the names, where they are known.

    Raises:
        ValueError: if there is no image, or none has a mask, or the masks are JPEGs.
    """
    found = images_in(images, findings)
    listed = found if images == masks else images_in(masks, findings)
    if images == masks:
        listed = [path for path in found if path.stem.lower().endswith(_MIXED)]
        found = [path for path in found if not path.stem.lower().endswith(_MIXED)]
    if not found:
        raise ValueError(f"{images} holds no image ({', '.join(image_suffixes())})")
    png = [path for path in listed if path.suffix.lower() not in _JPEG]
    if listed and not png:
        raise ValueError(
            f"the masks in {masks} are JPEGs, first {listed[0].name}. JPEG is lossy: it blurs "
            "classes into each other along every edge; save masks as PNG"
        )
    at: dict[tuple[PurePath, str], list[Path]] = {}
    for path in png:
        at.setdefault(_key(path, masks), []).append(path)
    keys = [_key(path, images) for path in found]
    chosen = ends or _ends(keys, at)
    partners = [at.get(_mask_key(key, chosen), []) for key in keys]
    kept = [(path, own[0]) for path, own in zip(found, partners, strict=True) if len(own) == 1]
    if not kept:
        example = f"; masks are called {png[0].name}" if png else ""
        raise ValueError(
            f"none of the {len(found)} images in {images} has a mask in {masks}, first "
            f"{found[0].name}{example}. An image and its mask have the same name but for the suffix"
        )
    for path, own in zip(found, partners, strict=True):
        if not own:
            findings.fault("image without mask|images without mask", str(path))
        elif len(own) > 1:
            what = f"{own[0]} and {own[1]} could both be the mask of {path.name}"
            findings.fault("image with two masks|images with two masks", what)
    used = {mask for own in partners for mask in own}
    lost = [path for path in listed if path not in used]
    what = f"first {lost[0].name}" if lost else ""
    findings.note("mask without image|masks without image", count=len(lost), what=what)
    if chosen != _SAME and ends is None:
        what = f"{found[0].name} with {kept[0][1].name}"
        findings.note(
            "mask of another name than its image|masks of other names than their images",
            count=len(kept),
            what=what,
        )
    return [image for image, _ in kept], [mask for _, mask in kept]


def folders_of(root: Path, masks: Sequence[str]) -> tuple[Path, Path] | None:
    """Return the folders of images and masks in a folder, by the usual names in any case.

    They are one folder if masks are told by the end of their names, ``cat.jpg``, ``cat_mask.png``.
    """
    images = find_folder(root, "images", "imgs", "img", "image")
    own = find_folder(root, *masks)
    if images and own:
        return images, own
    folder = images or root
    mixed = any(is_image_name(p.name) and p.stem.lower().endswith(_MIXED) for p in folder.iterdir())
    return (folder, folder) if mixed else None


def _ends(
    keys: Sequence[tuple[PurePath, str]], at: Mapping[tuple[PurePath, str], list[Path]]
) -> Ends:
    """Return the ends of names with which the most images have a mask."""
    best, most = _SAME, sum(key in at for key in keys)
    if most == len(keys):
        return best
    for of_image in ("", *_IMAGE_ENDS):
        for of_mask in ("", *_MASK_ENDS):
            count = sum(_mask_key(key, (of_image, of_mask)) in at for key in keys)
            if count > most:
                best, most = (of_image, of_mask), count
    return best


def _mask_key(key: tuple[PurePath, str], ends: Ends) -> tuple[PurePath, str]:
    """Return where the mask of an image is expected; nowhere if the image lacks its end."""
    place, stem = key
    return (place, stem.removesuffix(ends[0]) + ends[1]) if stem.endswith(ends[0]) else (place, "")


def _key(path: Path, folder: Path) -> tuple[PurePath, str]:
    """Return the folder and the name, in lower case, of a file, from which masks are found."""
    place = path.relative_to(folder)
    return place.parent, place.stem.lower()
