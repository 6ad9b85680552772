"""Plots of a benchmark: time and memory against the size of images, or accuracy against time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.figure import Figure

from rmt.deployment.benchmark import BenchmarkReport, Row, pairs
from rmt.deployment.candidates import Size
from rmt.files import write_atomically
from rmt.variants import VARIANTS

#: Top-1 accuracy of models of timm on ImageNet-1K in percent, as published for training at 224²
#: from scratch on ImageNet-1K alone.
PUBLISHED = {
    "swin_tiny_patch4_window7_224": 81.3,  # arXiv 2103.14030, table 1
    "convnext_tiny": 82.1,  # arXiv 2201.03545, table 1
    "caformer_s18": 83.6,  # arXiv 2210.13452
    "maxvit_tiny_tf_224": 83.6,  # arXiv 2204.01697 (83.62)
    "efficientformer_l1": 79.2,  # arXiv 2206.01191, with distillation
    "deit3_small_patch16_224": 81.4,  # arXiv 2204.07118
}
#: The size that the accuracies are of.
PUBLISHED_SIZE = (224, 224)


def published_top1(name: str) -> float | None:
    """Return the published accuracy of a model, in percent; None for others."""
    variant = VARIANTS.get(name)
    if variant is not None:
        return None if variant.published is None else variant.published.top1
    return PUBLISHED.get(name)


def check_plot(names: Sequence[str], sizes: int | Sequence[int | Size] | None) -> None:
    """Raise ``ValueError`` if there is nothing to draw.

    Args:
        names: of the models.
        sizes: as for :func:`rmt.benchmark`; None is taken as 224.
    """
    known = {name for name in names if published_top1(name) is not None}
    wanted = {*pairs(sizes)} or {PUBLISHED_SIZE}
    if len(wanted) < 2 and not (wanted == {PUBLISHED_SIZE} and len(known) > 1):
        raise ValueError(
            "a plot needs two sizes of images (--img-size 224 448), or at 224 two models with "
            "published accuracy, such as rmt_s swin_tiny_patch4_window7_224"
        )


def write_plot(report: BenchmarkReport, path: Path) -> None:
    """Draw a report: against the pixels of the images if there are several sizes."""
    rows = [row for row in report.rows if row.laps]
    several = len({row.candidate.size for row in report.rows}) > 1
    figure = _against_pixels(report, rows) if several else _accuracy(report, rows)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))


def _against_pixels(report: BenchmarkReport, rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    panels: list[tuple[str, Callable[[Row], float | None]]] = [
        ("milliseconds an image", lambda row: _milliseconds(report, row)),
        ("peak memory, MB a batch", lambda row: row.peak_memory and row.peak_memory / 1e6),
    ]
    for axis, (title, value) in zip(figure.subplots(1, 2), panels, strict=True):
        for label, own in _series(rows).items():
            points = {}
            for row in own:
                number = value(row)
                if number:
                    points[row.candidate.size[0] * row.candidate.size[1]] = number
            if points:
                x, y = zip(*sorted(points.items()), strict=True)
                axis.plot(x, y, "o-", label=f"{label}{_exponent(x, y)}")
        axis.set(xscale="log", yscale="log", xlabel="pixels of an image", ylabel=title)
        axis.grid(which="both", alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    return figure


def _accuracy(report: BenchmarkReport, rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(8, 6), layout="constrained")
    axis = figure.subplots()
    for row in rows:
        top1 = published_top1(row.candidate.source.name)
        if top1 is not None and row.candidate.size == PUBLISHED_SIZE:
            point = _milliseconds(report, row), top1
            axis.plot(*point, "o")
            label = f"{row.candidate.label}, batch {row.candidate.batch}"
            about = {"textcoords": "offset points", "fontsize": 7, "rotation": 40}
            axis.annotate(label, point, (4, 4), **about)
    axis.set(xlabel="milliseconds an image (measured)", ylabel="top-1, % (published)")
    axis.grid(alpha=0.3)
    return figure


def _series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows that differ in nothing but the size."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        label = f"{row.candidate.label}, batch {row.candidate.batch}"
        found.setdefault(label, []).append(row)
    return found


def _milliseconds(report: BenchmarkReport, row: Row) -> float:
    return 1e3 * median(row.times(report.clock)) / row.candidate.batch


def _exponent(x: Sequence[float], y: Sequence[float]) -> str:
    """Return the exponent of a power law through the points, as the end of a label."""
    if len(x) < 2:
        return ""
    slope, _ = np.polyfit(np.log(x), np.log(y), 1)
    return f": pixels^{slope:.2f}"
