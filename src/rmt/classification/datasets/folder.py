"""Class folders: one folder per class with its images, below a folder per split or without."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rmt.classification.datasets.drawn import Drawn, save_images
from rmt.classification.recipe import Data
from rmt.classification.samples import Samples
from rmt.data.classes import class_list, class_name, few
from rmt.data.findings import Findings
from rmt.data.folders import files_below, images_in, is_image_name, subfolders
from rmt.data.formats import Format, Source
from rmt.data.splits import SPLITS, Split, sort_by_split, split_of

#: Class -> its images.
Found = Mapping[str, list[Path]]


def sign(root: Path) -> str | None:
    """Return what class folders are recognised by: folders with an image in them."""
    if not root.is_dir():
        return None
    splits, _ = split_folders(root)
    for folder in subfolders(next(iter(splits.values()), root)):
        if any(map(is_image_name, files_below(folder))):  # the first one is enough
            return f"images in {folder.relative_to(root)}/"
    return None


def read(source: Source[Data]) -> Mapping[Split, Samples]:
    """Read the class folders of each split; without folders of splits all are ``train``.

    Raises:
        ValueError: if there are none, or a split has a class that the training images lack.
    """
    root, findings = source.root, source.findings
    if not root.is_dir():
        raise ValueError(f"data.root {str(root)!r} is not a folder of class folders")
    splits, others = split_folders(root)
    if not splits:  # or they are names of classes
        splits["train"], others = root, []
    for folder in others:
        if images := images_in(folder):
            named = split_of(folder.name)
            what = f"{folder.name} {'holds no class folders' if named else 'is not a split'}"
            findings.note("image not used|images not used", count=len(images), what=what)
    parts: dict[Split, Found] = {
        split: class_folders(folder, findings) for split, folder in splits.items()
    }
    if not any(images for found in parts.values() for images in found.values()):
        raise ValueError(
            f"{root} holds no class folders with images (one folder per class, images inside)"
        )
    for split, folder in splits.items():
        _ask_for_root(folder, parts[split], findings)
    return number_classes(parts, source.classes, findings)


def split_folders(root: Path) -> tuple[dict[Split, Path], list[Path]]:
    """Return the folder of each split, which holds class folders, and the other folders."""
    return sort_by_split((path.name if subfolders(path) else "", path) for path in subfolders(root))


def class_folders(root: Path, findings: Findings) -> Found:
    """Return the images of each class folder, searched deep; a folder may be empty."""
    loose = sum(is_image_name(path.name) for path in root.iterdir() if path.is_file())
    what = f"they lie in {root.name}, beside the class folders"
    findings.note("image not used|images not used", count=loose, what=what)
    found: dict[str, list[Path]] = {}
    for folder in subfolders(root):
        found.setdefault(class_name(folder.name), []).extend(images_in(folder, findings))
    return found


def number_classes(
    parts: Mapping[Split, Found], known: tuple[str, ...] | None, findings: Findings
) -> dict[Split, Samples]:
    """Return the images of each split with numbered classes.

    A folder that is empty in all splits is not a class, unless the model knows it.

    Args:
        parts: the images of each class folder.
        known: classes of a model.
        findings: names the empty folders.

    Raises:
        ValueError: if a split has a class that the training images lack.
    """
    used = {name for found in parts.values() for name, images in found.items() if images}
    first = parts.get("train") or {name: [] for found in parts.values() for name in found}
    classes = class_list(sorted(name for name in first if name in used), known)
    if strange := sorted(used - set(classes)):
        raise ValueError(f"the data have classes that the training split lacks: {few(strange)}")
    empty = sorted({name for found in parts.values() for name in found} - used)
    findings.note("empty class folder|empty class folders", count=len(empty), what=few(empty))
    at = {name: i for i, name in enumerate(classes)}
    return {
        split: Samples(
            [path for name in sorted(found) for path in found[name]],
            [at[name] for name in sorted(found) for _ in found[name]],
            classes,
        )
        for split in SPLITS
        if (found := parts.get(split))
    }


def write(root: Path, split: Split, drawn: Drawn) -> Path:
    """Write the images of a split; return the folder of the data set."""
    list(save_images(root, split, drawn))
    return root


def _ask_for_root(root: Path, found: Found, findings: Findings) -> None:
    """Refuse a folder around the class folders, or name what looks like one.

    Images below a class folder may lie in further folders. But a folder that holds nothing else,
    beside class folders without any, may be the data set itself (``Dataset/0..9``, ``Examples``).
    """
    used = {name: images for name, images in found.items() if images}
    inside = {
        name: {path.relative_to(root).parts[1] for path in images}
        for name, images in used.items()
        if all(len(path.relative_to(root).parts) > 2 for path in images)
    }
    wide = {name: sorted(folders) for name, folders in inside.items() if len(folders) > 1}
    if not wide:
        return
    name = max(wide, key=lambda own: len(wide[own]))
    certain = len(inside) < len(used) < len(wide[name])
    if certain or len(used) == 1:
        raise ValueError(
            f"{root} would give the classes {few(sorted(used))}, but {name} holds "
            f"{len(wide[name])} folders of images ({few(wide[name])}): if these are the classes, "
            f"or splits, set data.root to {root / name}"
        )
    what = f"{name} holds {few(wide[name])}; if these are the classes, data.root is {root / name}"
    findings.note("class of folders|classes of folders", count=len(wide), what=what)


FORMAT = Format(
    name="folder",
    title="class folders",
    layout="one folder per class with images inside",
    sign=sign,
    read=read,
    write=write,
)
