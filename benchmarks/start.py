"""Does a small data set gain by starting from the weights in this package?

    python benchmarks/start.py DIR [--per-class 100] [--epochs 20] [--seeds 2] [--out FOLDER]

DIR holds class folders in `train` and `test`, such as CIFAR-10's. The recipe small/folder trains
rmt_nano on the first images of each class, from random weights and from rmt_nano.tiny_imagenet,
for the same number of epochs, and evaluates it on the first 200 test images of each class. A tenth
of the training images is held out to choose the best epoch.
"""

import argparse
import platform
import shutil
import statistics
from pathlib import Path

from record import write_record

from rmt.training.evaluate import evaluate
from rmt.training.fit import fit, load_recipe

NAME = "rmt_nano.tiny_imagenet"
TESTED = 200  # images of a class
STARTS = {"random weights": [], NAME: ["--model.checkpoint", NAME]}


def write(source: Path, root: Path, per_class: int) -> None:
    """Copy the first images of each class."""
    for split, most in (("train", per_class), ("test", TESTED)):
        for folder in sorted(path for path in (source / split).iterdir() if path.is_dir()):
            (root / split / folder.name).mkdir(parents=True, exist_ok=True)
            for image in sorted(folder.iterdir())[:most]:
                shutil.copy(image, root / split / folder.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("--per-class", type=int, default=100, help="training images of a class")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/start"))
    parser.add_argument("--note", default="", help="what else ran on the machine")
    args = parser.parse_args()
    name = args.data.resolve().name
    write(args.data, args.out / "data", args.per_class)
    words = ["--data.root", str(args.out / "data"), "--data.input_size", "64"]
    words += ["--data.crop_pct", "1.0", "--data.interpolation", "bilinear"]
    words += ["--data.num_workers", "0", "--data.cache_gb", "1", "--trainer.threads", "1"]
    common = [*words, "--model.name", "rmt_nano", "--schedule.epochs", str(args.epochs)]
    rows = []
    for start, options in STARTS.items():
        runs = [
            fit(
                load_recipe("small/folder", [*common, *options, "--seed", str(seed)]),
                args.out / start.replace(" ", "_") / str(seed),
            )
            for seed in range(args.seeds)
        ]
        found = [run["test"]["top1"] for run in runs]
        rows.append({"start": start, "top1": statistics.mean(found)})
        rows[-1] |= {"min": min(found), "max": max(found)}
        print(rows[-1], flush=True)
    neighbours = evaluate(NAME, overrides=words, knn=20)
    rows.append({"start": f"{NAME}, 20 neighbours, no training", "top1": neighbours["knn_top1"]})
    print(rows[-1])
    options = f"--per-class {args.per_class} --epochs {args.epochs} --seeds {args.seeds}"
    write_record(
        f"start_{name}",
        what=f"rmt_nano on {args.per_class} images of each class of {name}, by its start",
        command=f"python benchmarks/start.py {name} {options}",
        machine=f"{platform.machine()}, one thread, CPU",
        notes=[f"minimum and maximum of {args.seeds} seeds", args.note],
        packages=("rmt", "torch", "timm", "lightning"),
        rows=rows,
    )


if __name__ == "__main__":
    main()
