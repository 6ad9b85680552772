"""Class names and colours that lie beside masks: ``classes.txt``, or CVAT's ``labelmap.txt``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rmt.data.text import read_lines
from rmt.segmentation.masks import Colour, plain_table
from rmt.segmentation.recipe import Data
from rmt.segmentation.segmenter import MOST_CLASSES

_FILES = ("classes.txt", "labelmap.txt")


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
    """Return the file that names the classes, if there is one."""
    return next((root / name for name in _FILES if (root / name).is_file()), None)


def coding_of(root: Path, data: Data) -> Coding | None:
    """Return the coding that a data set brings, None if it names no classes.

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
    return Coding(names, table, palette)


def read_classes(path: Path) -> tuple[tuple[str, ...], list[Colour] | None]:
    """Read class names, one per line in the order of the mask values; maybe followed by R G B.

    CVAT's form ``name:R,G,B::`` is read too; lines that begin with ``# `` are comments.

    Raises:
        ValueError: if there is no such file, fewer than two names, one twice, or colours on some
            lines only.
    """
    if not path.is_file():
        raise ValueError(f"no {path}: write the class names into it, line by line")
    names: list[str] = []
    colours: list[Colour] = []
    for line in read_lines(path):
        if line.startswith("# "):
            continue
        name, colour = _parse(line)
        names.append(name)
        colours += [colour] if colour else []
    if not 2 <= len(names) <= MOST_CLASSES:
        raise ValueError(f"{path} names {len(names)} classes; 2 to {MOST_CLASSES} are possible")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{path} names {sorted(twice)[0]!r} twice")
    if colours and len(colours) != len(names):
        raise ValueError(f"{path} gives colours for {len(colours)} of {len(names)} classes")
    return tuple(names), colours or None


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
