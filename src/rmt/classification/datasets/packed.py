"""Data sets of large files that hold many images: which files, which split, which class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rmt.classification.datasets.folder import (
    Found,
    class_folders,
    number_classes,
    split_folders,
)
from rmt.classification.recipe import Data
from rmt.classification.samples import Packed, Samples
from rmt.data.classes import class_list, few
from rmt.data.findings import Findings
from rmt.data.folders import subfolders
from rmt.data.formats import Source
from rmt.data.splits import SPLITS, Split, split_of

#: An image and the name or number of its class.
Entry = tuple[Packed, str]


def files_in(root: Path, suffix: str) -> list[Path]:
    """Return the files of a suffix in ``root``, in its folder ``data`` or in those of the splits.

    ``root`` may be such a file itself.
    """
    if root.is_file():
        return [root] if root.suffix.lower() == suffix else []
    named = [path for path in subfolders(root) if path.name == "data" or split_of(path.name)]
    found = [path for folder in (root, *named) for path in sorted(folder.iterdir())]
    return [p for p in found if p.suffix.lower() == suffix and not p.name.startswith(".")]


def files_by_split(root: Path, suffix: str) -> dict[Split, list[Path]]:
    """Sort the files of a suffix by the split that a word of their path below ``root`` names.

    ``data/train-00000-of-00294.parquet``, ``imagenet1k-train-0000.tar`` and ``train/0.tar`` belong
    to ``train``. Where no file names a split, all are to train on.

    Raises:
        ValueError: if there is no file, or some name a split and others do not.
    """
    home = root if root.is_dir() else root.parent
    found: dict[Split | None, list[Path]] = {}
    for file in files_in(root, suffix):
        found.setdefault(split_of(str(file.relative_to(home)), within=True), []).append(file)
    if not found:
        raise ValueError(f"{root} holds no *{suffix}, nor does a folder train, val or data in it")
    unnamed = found.pop(None, [])
    if found and unnamed:
        raise ValueError(
            f"{root}: nothing says which split {unnamed[0].name} belongs to, as others say; write "
            "train, val or test into each file's name, or make folders of these names"
        )
    splits = {split: found[split] for split in SPLITS if split in found}
    return splits or {"train": unnamed}


def samples_of(
    parts: Mapping[Split, Sequence[Entry]],
    *,
    names: tuple[str, ...] | None = None,
    known: tuple[str, ...] | None = None,
    numbered: bool = True,
    findings: Findings,
) -> dict[Split, Samples]:
    """Number the classes of all splits in the same way.

    Args:
        parts: images with the name or the number of their class.
        names: of the classes, in their order, if the data set tells them.
        known: names of a model's classes, for data that do not tell them.
        numbered: whether digits are numbers rather than names.
        findings: names the images whose number is beyond the classes.

    Raises:
        ValueError: naming the first image of a class that the training split lacks.
    """
    given = {label for entries in parts.values() for _, label in entries}
    as_number = numbered and all(label.isdecimal() for label in given)
    if as_number and not (names is None and known is not None and given <= set(known)):
        count = max(map(int, given), default=-1) + 1
        # Numbers count the model's classes, whatever these are called.
        own = known if known is not None and count <= len(known) else None
        classes = names or own or tuple(map(str, range(count)))
        at = {label: int(label) for label in given if int(label) < len(classes)}
    else:
        trained = parts.get("train") or next(iter(parts.values()))
        classes = names or class_list(sorted({label for _, label in trained}), known)
        at = {name: i for i, name in enumerate(classes)}
    found: dict[Split, Samples] = {}
    for split, entries in parts.items():
        strange = [entry for entry in entries if entry[1] not in at]
        for image, label in strange:
            what = f"{image} is of class {label!r}, but "
            if not as_number:
                raise ValueError(f"{what}there is no such class: {few(classes, 5)}")
            what += f"there are {len(classes)} classes"
            findings.fault("image of no such class|images of no such class", what)
        kept = [entry for entry in entries if entry[1] in at] if strange else entries
        found[split] = Samples([i for i, _ in kept], [at[c] for _, c in kept], classes)
    return found


def with_class_folders(parts: dict[Split, Samples], source: Source[Data]) -> dict[Split, Samples]:
    """Return the splits with those that lie as class folders beside the large files.

    So lies ImageNet: training images in tar files, validation images sorted into folders.
    """
    if not source.root.is_dir():
        return parts
    folders, _ = split_folders(source.root)
    beside: dict[Split, Found] = {
        split: class_folders(folder, source.findings)
        for split, folder in folders.items()
        if split not in parts and split != "train"
    }
    if not beside:
        return parts
    known = parts["train"].classes if "train" in parts else source.classes
    found = number_classes(beside, known, source.findings)
    if known and (strange := set(next(iter(found.values())).classes) - set(known)):
        raise ValueError(f"the data have classes that the training split lacks: {few(strange)}")
    return parts | found
