"""Which classes a data set has, and whether they are those of a model: once for all tasks."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence

from rmt.data.text import unescaped

Names = Sequence[str]
# XML and terminals cannot take them.
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), " ")


def class_name(text: str) -> str:
    """Return a class's name as it is compared: composed, on one line, without needless blanks.

    File names come decomposed from some systems, and in an ASCII locale their bytes come escaped;
    mmseg writes "bed " with a blank. Lists of classes have a line for each.
    """
    told = unescaped(text).translate(_CONTROLS)
    return unicodedata.normalize("NFC", " ".join(told.split()))


def class_list(found: Iterable[str], known: Names | None = None) -> tuple[str, ...]:
    """Return the class names of data that do not list them.

    Args:
        found: the names that occur, in order.
        known: names that a model was trained with. If they hold all that occur, they are the list:
            a data set to evaluate may lack a class.
    """
    names = tuple(found)
    return tuple(known) if known is not None and set(names) <= set(known) else names


def whole_number(label: str) -> str:
    """Return a label that is a whole number without its decimals: ``1.0`` is 1."""
    head, dot, tail = label.partition(".")
    return head if dot and head.isdecimal() and not tail.strip("0") else label


def few(names: Iterable[str], most: int = 10) -> str:
    """Return some names for a message."""
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def check_classes(
    model: Names | None,
    data: Names,
    *,
    num_classes: int,
    any_order: bool = False,
    same: Callable[[Names, Names], bool] | None = None,
) -> tuple[int, ...]:
    """Return for each label of the model the index of its class in the data.

    Args:
        model: class names that the model was trained with, or None if it does not know them: then
            labels are matched by their order.
        data: class names of the data.
        num_classes: of the model.
        any_order: whether the data may list the classes in another order.
        same: says whether two lists name the same classes in the same order by other words.

    Raises:
        ValueError: if the numbers of classes differ, or the names do, or their order matters and
            differs.
    """
    if num_classes != len(data):
        raise ValueError(
            f"the model has {num_classes} classes and the data {len(data)} ({few(data, 5)}); "
            "evaluate it on data with the classes it was trained for, or fine-tune it with "
            "--model.checkpoint"
        )
    names = list(map(class_name, model or data))
    theirs = list(map(class_name, data))
    if names == theirs or (same is not None and same(names, theirs)):
        return tuple(range(num_classes))
    if unknown := [name for name in names if name not in theirs]:
        absent = [name for name in theirs if name not in names]
        raise ValueError(
            f"the model was trained for other classes than the data has: {len(unknown)} are not in "
            f"the data, first {unknown[0]!r}; {len(absent)} are not in the model, first "
            f"{absent[0] if absent else ''!r}"
        )
    if any_order:
        return tuple(theirs.index(name) for name in names)
    differing = [(a, b) for a, b in zip(names, theirs, strict=True) if a != b]
    raise ValueError(
        f"the data lists the model's classes in another order: {differing[0][1]!r} where the model "
        f"has {differing[0][0]!r}, {len(differing)} places differ; list them as the model does"
    )
