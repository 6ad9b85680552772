"""Carry a trained rmt_nano over to new classes of which there are few images, in each usual way.

    python benchmarks/finetuning.py [--epochs 40] [--seeds 3] [--out runs/finetuning]

From scikit-learn's digits: the 901 zeros to fours make the network that one starts from; ten images
each of five to nine are to learn from, and the other 846 are judged. Every form gets the same
epochs, and the weights of the last one are judged: nothing is chosen on test data.
"""

import argparse
import datetime
import importlib
import json
import platform
import statistics
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from rmt.train import evaluate, fit, load_recipe

RESULTS = Path(__file__).parent / "results"
#: What is added to `rmt train small/digits --data.root DIR --model.checkpoint PATH`.
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
    "twice the resolution": ["--data.input_size", "80"],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/finetuning"))
    args = parser.parse_args()
    write_digits(args.out / "data")
    old = ["--data.format", "folder", "--data.root", str(args.out / "data" / "old")]
    fit(load_recipe("small/digits", old), args.out / "old")
    new = ["--data.format", "folder", "--data.root", str(args.out / "data" / "new")]
    new += ["--data.batch", "25", "--average.decay", "0"]
    new += ["--schedule.epochs", str(args.epochs), "--trainer.evaluate_every", str(args.epochs)]
    start = ["--model.checkpoint", str(args.out / "old")]
    forms = {"from a cold start": [], **{name: start + more for name, more in FORMS.items()}}
    rows = []
    for name, words in forms.items():
        runs = [
            fit(
                load_recipe("small/digits", [*new, *words, "--seed", str(seed)]),
                args.out / name.replace(" ", "_") / str(seed),
            )
            for seed in range(args.seeds)
        ]
        found = [run["test"]["top1"] for run in runs]
        seconds = statistics.median(run["seconds"] for run in runs)
        rows.append({"form": name, "top1": statistics.mean(found), "seconds": seconds})
        rows[-1] |= {"least": min(found), "most": max(found)}
        print(rows[-1], flush=True)
    neighbours = evaluate(args.out / "old", overrides=new[:4], knn=10)
    rows.append({"form": "10 nearest neighbours, no training", "top1": neighbours["knn_top1"]})
    print(rows[-1])
    record = {
        "what": "rmt_nano of digits 0 to 4 carried over to ten images each of 5 to 9",
        "command": f"python benchmarks/finetuning.py --epochs {args.epochs} --seeds {args.seeds}",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), CPU",
        "note": f"mean, least and most of {args.seeds} seeds, {args.epochs} epochs each",
        "versions": {
            module: importlib.import_module(module).__version__
            for module in ("rmt", "torch", "timm", "lightning")
        },
        "rows": rows,
    }
    (RESULTS / "finetuning.json").write_text(json.dumps(record, indent=1) + "\n")


def write_digits(root: Path) -> None:
    """Write class folders: 0 to 4 to begin with, 5 to 9 to learn from ten of each."""
    digits = load_digits()
    seen = Counter()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        seen[label] += 1
        part = "old" if label < 5 else "new/train" if seen[label] <= 10 else "new/val"
        folder = root / part / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (image * (255 / 16)).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


if __name__ == "__main__":
    main()
