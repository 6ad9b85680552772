"""Draw the learning curves and costs in benchmarks/results/segmentation_*.json.

Run: python benchmarks/segmentation_plots.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parent.parent / "docs" / "images"


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    for data in ("nuclei", "colin27"):
        rows = json.loads((RESULTS / f"segmentation_{data}.json").read_text())["rows"]
        save(curves(rows), f"segmentation_{data}_curve")
    rows = json.loads((RESULTS / "segmentation_scaling.json").read_text())["rows"]
    save(scaling(rows), "segmentation_scaling")


def curves(rows: dict[str, dict]) -> Figure:
    """Return loss and validation mIoU over the steps of each network."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    loss, score = figure.subplots(1, 2)
    for name, row in rows.items():
        steps = [record["step"] for record in row["history"]]
        loss.plot(steps, [record["loss"] for record in row["history"]], marker=".", label=name)
        score.plot(steps, [record["val_mIoU"] for record in row["history"]], marker=".")
    loss.set_title("training loss of one batch", fontsize=9)
    loss.set_yscale("log")
    loss.legend(fontsize=7)
    score.set_title("validation mIoU, %, EMA weights", fontsize=9)
    for axis in (loss, score):
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
    return figure


def scaling(rows: list[dict]) -> Figure:
    """Return CPU seconds and peak memory over pixels, next to a proportional line."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    ways = ("logits", "logits, kept", "labels, kept", "windows, kept")
    for axis, key, title in zip(
        figure.subplots(1, 2),
        ("seconds", "peak_gb"),
        ("CPU seconds", "peak memory of the process, GB"),
        strict=True,
    ):
        for way in ways:
            points = sorted((row["height"] * row["width"] / 1e6, row[way][key]) for row in rows)
            axis.plot(*zip(*points, strict=True), marker=".", label=way)
            if key == "seconds" and way == "labels, kept":
                start, most = points[0], points[-1][0]
                straight = [start[1], start[1] * most / start[0]]
                axis.plot([start[0], most], straight, "--", color="grey", label="proportional")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("megapixels", fontsize=8)
        axis.set_ylim(0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return figure


def save(figure: Figure, name: str) -> None:
    figure.savefig(IMAGES / f"{name}.png", dpi=100)


if __name__ == "__main__":
    main()
