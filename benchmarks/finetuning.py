"""Carry a trained rmt_nano over to new classes of which there are few images, in each usual way.

    python benchmarks/finetuning.py digits|fashion-mnist [--epochs 40] [--seeds 3] [--out FOLDER]

The first five classes make the network that one starts from (901 digits, or 35,000 pieces of
clothing); ten training images each of the other five are to learn from, and up to 1,000 others of
each, first those of the test part, are judged. Every form gets the same epochs, and the weights of
the last one are judged: nothing is chosen on what is judged.
"""

import argparse
import datetime
import importlib
import json
import platform
import statistics
from collections import Counter
from pathlib import Path

import torch
from PIL import Image

from rmt.classification.recipe import Data
from rmt.classification.datasets import open_splits
from rmt.training.fit import evaluate, fit, load_recipe

RESULTS = Path(__file__).parent / "results"
OLD = 5  # classes
FEW, MANY = 10, 1000  # images of a new class to learn from, and to judge at the most
#: Recipe, side of the images in pixels, epochs on the old classes.
SETS = {"digits": ("small/digits", 40, 24), "fashion-mnist": ("small/fashion_mnist", 28, 8)}
#: What is added to `rmt train RECIPE --data.root DIR --model.checkpoint PATH`.
FORMS = {
    "all weights": [],
    "layer-wise decay 0.7": ["--optimizer.layer_decay", "0.7"],
    "stem and two stages frozen": ["--model.freeze", '["stem","stages.0","stages.1"]'],
    "linear probe, 10 x the rate": [
        "--model.freeze",
        '["stem","stages","head.proj","head.norm"]',
        "--optimizer.lr",
        "2e-2",
    ],
    "twice the resolution": ["--data.input_size", "{}"],
}


def main() -> None:
    parser = argparse.ArgumentParser()
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
    forms = {"from a cold start": []}
    for name, words in FORMS.items():
        forms[name] = [*start, *(word.replace("{}", str(2 * size)) for word in words)]
    rows = []
    for name, words in forms.items():
        runs = [
            fit(
                load_recipe(recipe, [*new, *words, "--seed", str(seed)]),
                out / name.replace(" ", "_") / str(seed),
            )
            for seed in range(args.seeds)
        ]
        found = [run["test"]["top1"] for run in runs]
        seconds = statistics.median(run["seconds"] for run in runs)
        rows.append({"form": name, "top1": statistics.mean(found), "seconds": seconds})
        rows[-1] |= {"least": min(found), "most": max(found)}
        print(rows[-1], flush=True)
    neighbours = evaluate(out / "old", overrides=common, knn=10)
    rows.append({"form": "10 nearest neighbours, no training", "top1": neighbours["knn_top1"]})
    print(rows[-1])
    words = f"{args.data} --epochs {args.epochs} --seeds {args.seeds}"
    record = {
        "what": f"rmt_nano of {args.data}'s first five classes carried over to ten images of each "
        f"other, {count} judged",
        "command": f"python benchmarks/finetuning.py {words}",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), CPU",
        "note": "; ".join(filter(None, [f"least and most of {args.seeds} seeds", args.note])),
        "versions": {
            module: importlib.import_module(module).__version__
            for module in ("rmt", "torch", "timm", "lightning")
        },
        "rows": rows,
    }
    name = f"finetuning_{args.data.replace('-', '_')}.json"
    (RESULTS / name).write_text(json.dumps(record, indent=1) + "\n")


def write(name: str, root: Path) -> int:
    """Write class folders of old classes and of new ones; return how many images are to judge."""
    parts = open_splits(Data(format=name))
    assert parts.test is not None
    seen: Counter[tuple[str, int]] = Counter()
    for samples in (parts.test, parts.train, parts.val):
        for index, label in enumerate(samples.labels):
            few = samples is parts.train and seen["new/train", label] < FEW
            part = "old" if label < OLD else "new/train" if few else "new/val"
            if part == "new/val" and seen[part, label] == MANY:
                continue
            save(samples.image(index), root / part / str(label) / f"{seen[part, label]}.png")
            seen[part, label] += 1
    return sum(count for (part, _), count in seen.items() if part == "new/val")


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


if __name__ == "__main__":
    main()
