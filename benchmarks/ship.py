"""Write the weights of a run into the package, and its learning curve into the documentation.

    python benchmarks/ship.py rmt_nano.tiny_imagenet runs/tiny_imagenet/rmt_nano_32 \
        runs/tiny_imagenet/rmt_nano

The weights are those of the last run, in half precision and with the transforms and terms of their
tag. The SHA-256 that is printed belongs into `SHIPPED_DIGESTS` of `rmt/modeling/registry.py` and
into the model card beside the file. The logs of all runs are joined in `results/NAME.csv` and drawn
in `docs/images/NAME.png`.
"""

import argparse
import csv
from pathlib import Path

import matplotlib.pyplot as plt
import timm

import rmt
from rmt.files import digest_of_file
from rmt.modeling.registry import SHIPPED_DIGESTS
from rmt.modeling.saved import SHIPPED

ROOT = Path(__file__).parent.parent


def log_of(runs: list[Path]) -> list[dict[str, str]]:
    """Return the logged loss and the evaluations of runs that follow one another."""
    rows: list[dict[str, str]] = []
    steps = 0
    for run in runs:
        (log,) = sorted(run.glob("logs/version_*/metrics.csv"))[-1:]
        with log.open(newline="") as file:
            found = [
                {
                    "run": run.name,
                    "step": str(steps + int(row["step"])),
                    "loss": row["loss"],
                    "val_top1": row["val/top1"],
                }
                for row in csv.DictReader(file)
            ]
        rows += found
        steps = int(rows[-1]["step"])
    return rows


def draw(rows: list[dict[str, str]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    losses = [(int(row["step"]), float(row["loss"])) for row in rows if row["loss"]]
    axes.plot(*zip(*losses, strict=True), color="tab:grey", linewidth=0.8)
    axes.set(xlabel="step", ylabel="training loss")
    scores = [(int(row["step"]), float(row["val_top1"])) for row in rows if row["val_top1"]]
    right = axes.twinx()
    right.plot(*zip(*scores, strict=True), color="tab:blue", marker="o")
    right.set(ylabel="top-1 on the validation images, %", ylim=(0, None))
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=SHIPPED_DIGESTS)
    parser.add_argument("runs", nargs="+", type=Path, help="in their order")
    args = parser.parse_args()
    model = rmt.load(args.runs[-1]).half()
    registered = timm.create_model(args.name).pretrained_cfg
    model.pretrained_cfg = {key: value for key, value in registered.items() if key != "file"}
    path = rmt.save(model, SHIPPED / f"{args.name}.safetensors")
    print(f"{path}\nSHA-256 {digest_of_file(path)}")
    rows = log_of(args.runs)
    with (ROOT / "benchmarks" / "results" / f"{args.name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, ROOT / "docs" / "images" / f"{args.name}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
