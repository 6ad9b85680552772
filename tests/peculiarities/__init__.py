"""What people's tools write, format by format: each cell of the table in docs/data.md is run.

A cell is a function that makes such a data set and returns it opened. Its outcome is

* ``read``: nothing is lost, and the function asserts that the right values arrive;
* ``counted``: read, and the description of the data says how many there are;
* ``left out``: named and counted, and the rest is used;
* ``refused``: a ``ValueError`` that says what to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rmt.classification.datasets
import rmt.classification.recipe
import rmt.classification.toy
import rmt.detection.datasets
import rmt.detection.recipe
import rmt.detection.toy
import rmt.segmentation.datasets
import rmt.segmentation.recipe
import rmt.segmentation.toy
from rmt.data.splits import Splits

#: Column of the table -> task, and the format that is written.
COLUMNS = {
    "class folders": (rmt.classification, "folder"),
    "CSV": (rmt.classification, "csv"),
    "webdataset": (rmt.classification, "webdataset"),
    "Parquet": (rmt.classification, "parquet"),
    "COCO": (rmt.detection, "coco"),
    "YOLO": (rmt.detection, "yolo"),
    "VOC": (rmt.detection, "voc"),
    "masks": (rmt.segmentation, "folder"),
}
OUTCOMES = ("read", "counted", "left out", "refused")

Run = Callable[[str, Path], Splits]


@dataclass(frozen=True)
class Cell:
    """A cell of the table.

    Attributes:
        row: the peculiarity.
        column: the format.
        outcome: what happens.
        run: makes such data and opens them.
        words: what the description, or the refusal, says (a part of it).
    """

    row: str
    column: str
    outcome: str
    run: Run
    words: str


CELLS: list[Cell] = []


def cell(row: str, outcome: str, *columns: str, words: str = "") -> Callable[[Run], Run]:
    """Register a function for some columns of a row."""
    assert outcome in OUTCOMES, outcome
    assert set(columns) <= set(COLUMNS), columns

    def register(run: Run) -> Run:
        CELLS.extend(Cell(row, column, outcome, run, words) for column in columns)
        return run

    return register


def make(column: str, root: Path, **keys: Any) -> Path:
    """Write a toy in the format of a column; return its ``data.root``."""
    task, name = COLUMNS[column]
    return task.toy.toy(root, name, **keys)


def opened(column: str, root: Path, *, classes: list[str] | None = None, **keys: Any) -> Splits:
    """Open a data set as a run of the column's task does."""
    task, _ = COLUMNS[column]
    return task.datasets.open_splits(task.recipe.Data(root=str(root), **keys), classes)


def images_of(root: Path, split: str) -> list[Path]:
    """Return the image files of a split, without masks."""
    found = [p for p in root.rglob("*") if p.suffix in (".png", ".jpg") and "masks" not in p.parts]
    return sorted(path for path in found if split in path.relative_to(root).parts)
