"""Plots and tables that evaluations of several tasks share."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rmt.files import write_atomically
from rmt.messages import printable

#: More classes than this do not fit into a plot of all pairs.
MOST_CLASSES = 40


def confusion(table: np.ndarray, classes: Sequence[str], *, numbers: bool = True) -> Figure:
    """Draw counts by true class (row) and predicted class (column).

    Args:
        table: (K, K), counts. Colours show shares of the true class.
        classes: names.
        numbers: whether to print the counts; False prints percent of the true class.
    """
    count = len(classes)
    shares = table / table.sum(1, keepdims=True).clip(1)
    side = 2.5 + 0.45 * count
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for y, x in zip(*np.nonzero(table), strict=True):
        text = str(table[y, x]) if numbers else f"{100 * shares[y, x]:.0f}"
        if text != "0":
            dark = shares[y, x] > 0.5
            axis.text(x, y, text, ha="center", va="center", color="w" if dark else "k")
    axis.set_xticks(range(count), classes, rotation=90, parse_math=False)
    axis.set_yticks(range(count), classes, parse_math=False)
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    return figure


def class_bars(values: Sequence[float], names: Sequence[str], *, decimals: int) -> Figure:
    """Draw a value of each class, in percent, as horizontal bars from top to bottom.

    The caller labels the only axis, ``figure.axes[0]``.

    Args:
        values: one per class.
        names: of the classes.
        decimals: of the printed values.
    """
    figure = Figure(figsize=(7, 1.2 + 0.25 * len(values)), layout="constrained")
    axis = figure.subplots()
    bars = axis.barh(range(len(values)), values, color="tab:blue")
    axis.bar_label(bars, fmt=f"%.{decimals}f", padding=3, fontsize=8)
    shown = [printable(name, limit=60) for name in names]
    axis.set_yticks(range(len(values)), shown, fontsize=8, parse_math=False)
    axis.set_xlim(0, 108)
    axis.margins(y=0.02)
    axis.invert_yaxis()
    return figure


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys as a CSV file with a header."""

    def write(temporary: Path) -> None:
        # Names of files may be any bytes.
        with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)
