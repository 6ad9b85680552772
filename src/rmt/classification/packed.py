"""Data sets of large files that hold many images: which files, which part, which class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rmt.classification.samples import PARTS, Packed, Samples

#: An image and the name or number of its class.
Entry = tuple[Packed, str]


def files_in(root: Path, suffix: str) -> list[Path]:
    """Return the files of a suffix in ``root``, in its folder ``data`` or in those of the parts.

    ``root`` may be such a file itself.
    """
    if root.is_file():
        return [root] if root.suffix == suffix else []
    names = ("", "data", *(name for names in PARTS.values() for name in names))
    found = [path for name in names for path in sorted((root / name).glob(f"*{suffix}"))]
    return [path for path in found if not path.name.startswith(".")]


def parts_of(root: Path, suffix: str) -> dict[str, list[Path]]:
    """Sort the files of a suffix by the part that a word of their path below ``root`` names.

    ``data/train-00000-of-00294.parquet``, ``imagenet1k-train-0000.tar`` and ``train/0.tar`` belong
    to ``train``. Where no file names a part, all are to train on.

    Raises:
        ValueError: if there is no file, or some name a part and others do not.
    """
    home = root if root.is_dir() else root.parent
    found: dict[str, list[Path]] = {}
    for file in files_in(root, suffix):
        words = re.split(r"[^a-z]+", str(file.relative_to(home)).lower())
        part = next((p for word in words for p, names in PARTS.items() if word in names), "")
        found.setdefault(part, []).append(file)
    if not found:
        raise ValueError(f"{root} holds no *{suffix}, nor does a folder train, val or data in it")
    if len(found) > 1 and "" in found:
        raise ValueError(
            f"{root}: nothing says which part {found[''][0].name} belongs to, as others say; "
            "write train, val or test into each file's name, or make folders of these names"
        )
    return {"train": found[""]} if "" in found else found


def samples_of(
    parts: Mapping[str, Sequence[Entry]],
    *,
    names: tuple[str, ...] | None = None,
    numbered: bool = True,
) -> dict[str, Samples]:
    """Number the classes of all parts in the same way.

    Args:
        parts: images with the name or the number of their class.
        names: of the classes, in their order, if the data set tells them.
        numbered: whether digits are numbers rather than names.

    Raises:
        ValueError: naming the first image whose class cannot be.
    """
    given = {label for entries in parts.values() for _, label in entries}
    as_number = numbered and all(label.isdecimal() for label in given)
    if as_number:
        classes = names or tuple(map(str, range(max(map(int, given), default=-1) + 1)))
        at = {label: int(label) for label in given if int(label) < len(classes)}
    else:
        known = parts.get("train") or next(iter(parts.values()))
        classes = names or tuple(sorted({label for _, label in known}))
        at = {name: i for i, name in enumerate(classes)}
    found = {}
    for part, entries in parts.items():
        if strange := next((entry for entry in entries if entry[1] not in at), None):
            of = f"are {len(classes)} classes" if as_number else f"is no such class: {classes[:5]}"
            raise ValueError(f"{strange[0]} is of class {strange[1]!r}, but there {of}")
        found[part] = Samples([i for i, _ in entries], [at[label] for _, label in entries], classes)
    return found
