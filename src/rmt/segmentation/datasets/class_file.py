"""Class names and colours that lie beside masks: ``classes.txt``, or what a tool calls it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rmt.data.classes import class_name, few
from rmt.data.findings import Findings
from rmt.data.folders import subfolders
from rmt.data.splits import split_of
from rmt.data.text import read_lines
from rmt.segmentation.masks import INVALID, Colour, plain_table
from rmt.segmentation.recipe import Data
from rmt.segmentation.segmenter import IGNORED, MOST_CLASSES

# The second is CVAT's, the third labelme's, the last Roboflow's, which lies with each split.
_FILES = ("classes.txt", "labelmap.txt", "class_names.txt", "_classes.csv")


@dataclass(frozen=True)
class Coding:
    """How masks say a class.

    Attributes:
        classes: class names.
        table: mask value -> class index.
        palette: RGB of each mask value, where colours are classes.
    """

    classes: tuple[str, ...]
    table: np.ndarray
    palette: list[Colour] | None = None


def find_class_file(root: Path) -> Path | None:
    """Return the file that names the classes, if there is one, in the root or with a split."""
    places = (root / name for name in _FILES)
    with_splits = (folder / _FILES[-1] for folder in subfolders(root) if split_of(folder.name))
    return next((path for path in (*places, *with_splits) if path.is_file()), None)


def coding_of(root: Path, data: Data, findings: Findings) -> Coding | None:
    """Return the coding that a data set brings, None if it names no classes.

    Values whose classes have one name are one class.

    Raises:
        ValueError: as :func:`read_classes`; or if the recipe says of mask values what colours are
            not.
    """
    path = find_class_file(root)
    if path is None:
        return None
    names, palette = read_classes(path)
    if palette and data.reduce_zero_label:
        raise ValueError(
            f"{path} lists colours, so that no mask value is 0 for unlabelled: set "
            "data.reduce_zero_label to false; unlisted black pixels are ignored anyway"
        )
    if palette and data.ignore_index != 255:
        raise ValueError(
            f"{path} lists colours, so that data.ignore_index {data.ignore_index} is not a mask "
            "value: leave it at 255; unlisted black and white pixels are ignored anyway"
        )
    table = plain_table(
        len(names), reduce_zero_label=data.reduce_zero_label, ignore_index=data.ignore_index
    )
    classes = tuple(dict.fromkeys(names))
    twice = [name for name in classes if names.count(name) > 1]
    findings.note("class named twice|classes named twice", count=len(twice), what=few(twice))
    labelled = (table != INVALID) & (table != IGNORED)
    table[labelled] = np.array([classes.index(name) for name in names])[table[labelled]]
    return Coding(classes, table, palette)


def coding_of_model(classes: Sequence[str] | None, data: Data) -> Coding | None:
    """Return the coding of masks that number a model's classes, None if these are not known.

    Data to evaluate need not list the classes once more.
    """
    if classes is None:
        return None
    table = plain_table(
        len(classes), reduce_zero_label=data.reduce_zero_label, ignore_index=data.ignore_index
    )
    return Coding(tuple(classes), table)


def read_classes(path: Path) -> tuple[tuple[str, ...], list[Colour] | None]:
    """Read class names, one per line in the order of the mask values; maybe followed by R G B.

    CVAT's form ``name:R,G,B::`` and Roboflow's ``value, name`` are read too; lines that begin with
    ``# `` are comments, and labelme's ``__ignore__`` is not a class.

    Raises:
        ValueError: if there is no such file, fewer than two names, or colours on some lines only.
    """
    if not path.is_file():
        raise ValueError(f"no {path}: write the class names into it, line by line")
    lines = [line for line in read_lines(path) if not line.startswith("# ")]
    if path.suffix.lower() == ".csv":
        lines = _by_value(lines, path)
    entries = [_parse(line) for line in lines if line != "__ignore__"]
    names = tuple(class_name(name) for name, _ in entries)
    colours = [colour for _, colour in entries if colour]
    if not 2 <= len(set(names)) <= len(names) <= MOST_CLASSES:
        raise ValueError(
            f"{path} names {len(set(names))} classes; 2 to {MOST_CLASSES} are possible"
        )
    if colours and len(colours) != len(names):
        raise ValueError(f"{path} gives colours for {len(colours)} of {len(names)} classes")
    return names, colours or None


def _by_value(lines: Sequence[str], path: Path) -> list[str]:
    """Return the names behind mask values, which must be 0, 1, ..., in their order."""
    pairs = [line.partition(",") for line in lines]
    named = {int(value): name.strip() for value, _, name in pairs if value.strip().isdigit()}
    if sorted(named) != list(range(len(named))):
        raise ValueError(f"{path} must number the classes 0, 1, ...; it has {sorted(named)}")
    return [named[value] for value in sorted(named)]


def _parse(line: str) -> tuple[str, Colour | None]:
    """Return the name and the colour of a line."""
    if line.count(":") == 3:  # name:R,G,B:parts:actions
        name, numbers, *_ = line.split(":")
        return name.strip(), _colour(numbers.split(","))
    for words in (line.split(), line.replace(",", " ").split()):
        if len(words) > 3 and (colour := _colour(words[-3:])):
            return " ".join(words[:-3]), colour
    return line, None


def _colour(words: Sequence[str]) -> Colour | None:
    if len(words) != 3 or not all(w.strip().isdigit() and int(w) < 256 for w in words):
        return None
    red, green, blue = map(int, words)
    return red, green, blue
