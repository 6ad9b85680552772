"""Draw the learning curves in benchmarks/results/detection_*.json.

Run: python benchmarks/detection_plots.py
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
    for data, kinds in (("trees", ("box",)), ("nuclei", ("box", "mask"))):
        rows = json.loads((RESULTS / f"detection_{data}.json").read_text())["rows"]
        curves(rows, kinds).savefig(IMAGES / f"detection_{data}_curve.png", dpi=100)


def curves(rows: dict[str, dict], kinds: tuple[str, ...]) -> Figure:
    """Return loss and validation AP50 over the steps of each network."""
    figure = Figure(figsize=(4 * (1 + len(kinds)), 3), layout="constrained")
    titles = {"loss": "training loss of one batch"} | {
        f"{kind}_AP50": f"validation AP50, {kind}, EMA weights" for kind in kinds
    }
    for axis, (key, title) in zip(figure.subplots(1, len(titles)), titles.items(), strict=True):
        for name, row in rows.items():
            points = [(record["step"], record[key]) for record in row["history"]]
            axis.plot(*zip(*points, strict=True), marker=".", label=name)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylim(0)
        axis.grid(alpha=0.3)
        if key == "loss":
            axis.legend(fontsize=7)
    return figure


if __name__ == "__main__":
    main()
