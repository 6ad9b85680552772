"""Fine-tune a trained rmt_nano on new classes with few images, in each of the usual ways.

    python benchmarks/finetuning.py digits|fashion-mnist [--epochs 40] [--seeds 3] [--out FOLDER]

The network is pre-trained on the first five classes (901 digits, or 35,000 pieces of clothing). It
is fine-tuned on ten training images of each of the other five classes, and evaluated on up to 1,000
other images of each, first those of the test split. Every method gets the same number of epochs,
and the weights of the last one are evaluated: nothing is selected on the evaluated images.
"""

import argparse
import platform
import statistics
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from record import write_record

from rmt.classification.datasets import open_splits
from rmt.classification.recipe import Data
from rmt.training.evaluate import evaluate
from rmt.training.fit import fit, load_recipe

OLD = 5  # classes
FEW, MANY = 10, 1000  # images of a new class for training, and at most for evaluation
#: Recipe, side of the images in pixels, epochs on the old classes.
SETS = {"digits": ("small/digits", 40, 24), "fashion-mnist": ("small/fashion_mnist", 28, 8)}
#: What is added to `rmt train RECIPE --data.root DIR --model.checkpoint PATH`.
METHODS = {
    "all weights": [],
    "layer-wise decay 0.7": ["--optimizer.layer_decay", "0.7"],
    "stem and two stages frozen": ["--model.freeze", '["stem","stages.0","stages.1"]'],
    "linear probe, 10 x the learning rate": [
        "--model.freeze",
        '["stem","stages","head.proj","head.norm"]',
        "--optimizer.lr",
        "2e-2",
    ],
    "twice the resolution": ["--data.input_size", "{}"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", choices=SETS, default="digits")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/finetuning"))
    parser.add_argument("--note", default="", help="what else ran on the machine")
    args = parser.parse_args()
    out = args.out / args.data
    count = write(args.data, out / "data")
    recipe, size, epochs = SETS[args.data]
    common = ["--data.format", "folder", "--data.input_size", str(size)]
    common += ["--trainer.global_batch_size", "0"]
    old = ["--data.root", str(out / "data" / "old"), "--schedule.epochs", str(epochs)]
    fit(load_recipe(recipe, [*common, *old]), out / "old")
    common += ["--data.root", str(out / "data" / "new")]
    new = [*common, "--data.batch_size", "25", "--ema.decay", "0"]
    new += ["--schedule.epochs", str(args.epochs), "--trainer.evaluate_every", str(args.epochs)]
    start = ["--model.checkpoint", str(out / "old")]
    methods = {"from scratch": []}
    for name, options in METHODS.items():
        methods[name] = [*start, *(option.replace("{}", str(2 * size)) for option in options)]
    rows = []
    for name, options in methods.items():
        runs = [
            fit(
                load_recipe(recipe, [*new, *options, "--seed", str(seed)]),
                out / name.replace(" ", "_") / str(seed),
            )
            for seed in range(args.seeds)
        ]
        found = [run["test"]["top1"] for run in runs]
        seconds = statistics.median(run["seconds"] for run in runs)
        rows.append({"method": name, "top1": statistics.mean(found), "seconds": seconds})
        rows[-1] |= {"min": min(found), "max": max(found)}
        print(rows[-1], flush=True)
    neighbours = evaluate(out / "old", overrides=common, knn=10)
    rows.append({"method": "10 nearest neighbours, no training", "top1": neighbours["knn_top1"]})
    print(rows[-1])
    options = f"{args.data} --epochs {args.epochs} --seeds {args.seeds}"
    write_record(
        f"finetuning_{args.data.replace('-', '_')}",
        what=f"rmt_nano, pre-trained on the first five classes of {args.data}, fine-tuned on "
        f"ten images of each other class and evaluated on {count} images",
        command=f"python benchmarks/finetuning.py {options}",
        machine=f"{platform.machine()}, {torch.get_num_threads()} thread(s), CPU",
        notes=[f"minimum and maximum of {args.seeds} seeds", args.note],
        packages=("rmt", "torch", "timm", "lightning"),
        rows=rows,
    )


def write(name: str, root: Path) -> int:
    """Write class folders of old and new classes; return the number of images to evaluate."""
    splits = open_splits(Data(format=name))
    assert splits.test is not None
    seen: Counter[tuple[str, int]] = Counter()
    for samples in (splits.test, splits.train, splits.val):
        for index, label in enumerate(samples.labels):
            few = samples is splits.train and seen["new/train", label] < FEW
            split = "old" if label < OLD else "new/train" if few else "new/val"
            if split == "new/val" and seen[split, label] == MANY:
                continue
            save(samples.image(index), root / split / str(label) / f"{seen[split, label]}.png")
            seen[split, label] += 1
    return sum(count for (split, _), count in seen.items() if split == "new/val")


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


if __name__ == "__main__":
    main()
