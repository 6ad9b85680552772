"""Cells of a table that hold several labels."""

from __future__ import annotations

from collections.abc import Iterable

from rmt.data.classes import class_name

#: What separates labels: the first that occurs in a column does so in all of it; otherwise blanks.
MARKS = ("|", ";", ",")


def separator(cells: Iterable[str]) -> str | None:
    """Return what separates the labels of a column; None for blanks."""
    present = {mark for cell in cells for mark in MARKS if mark in cell}
    return next((mark for mark in MARKS if mark in present), None)


def labels_of(cell: str, mark: str | None) -> tuple[str, ...] | None:
    """Return the labels in a cell, each once; none of an empty one.

    A list in brackets, as pandas writes it, is read too.

    Args:
        cell: of the column.
        mark: what separates its labels.

    Returns:
        The names; None if the cell separates them by another mark, ``;`` where the column has
        ``|``. A comma there belongs to the name.
    """
    if cell.startswith("[") and cell.endswith("]"):
        parts = [part.strip(" '\"") for part in cell[1:-1].split(",")]
    elif mark == "|" and ";" in cell:
        return None
    else:
        parts = cell.split(mark)
    return tuple(dict.fromkeys(name for part in parts if (name := class_name(part))))
