"""Carry one trained rmt_nano over to another data set, in each way that people do it.

    python benchmarks/finetuning.py CHECKPOINT [--epochs 5] [--seeds 3] [--out runs/finetuning]

CHECKPOINT is a run of small/fashion_mnist; the new data are scikit-learn's digits (1,437 training
and 360 test images, few enough that where one starts matters). Every form gets the same epochs; the
weights of the last epoch are judged, so that nothing is chosen on test data.
"""

import argparse
import datetime
import importlib
import json
import platform
import statistics
from pathlib import Path

import torch

from rmt.train import evaluate, fit, load_recipe

RESULTS = Path(__file__).parent / "results"
#: What is added to `rmt train small/digits --model.checkpoint CHECKPOINT`.
FORMS = {
    "all weights": [],
    "layer-wise decay 0.7": ["--optimizer.layer_decay", "0.7"],
    "stem and two stages frozen": ["--model.freeze", '["stem","stages.0","stages.1"]'],
    "linear probe": ["--model.freeze", '["stem","stages","head.proj","head.norm"]'],
    "twice the resolution": ["--data.input_size", "80"],
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", help="folder of a run of small/fashion_mnist")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/finetuning"))
    args = parser.parse_args()
    common = ["--schedule.epochs", str(args.epochs), "--average.decay", "0"]
    common += ["--trainer.evaluate_every", str(args.epochs)]
    start = ["--model.checkpoint", args.checkpoint]
    forms = {"from a cold start": [], **{name: start + more for name, more in FORMS.items()}}
    rows = []
    for name, words in forms.items():
        runs = [
            fit(
                load_recipe("small/digits", [*common, *words, "--seed", str(seed)]),
                args.out / name.replace(" ", "_") / str(seed),
            )
            for seed in range(args.seeds)
        ]
        found = [run["test"]["top1"] for run in runs]
        seconds = statistics.median(run["seconds"] for run in runs)
        rows.append({"form": name, "top1": statistics.mean(found), "seconds": seconds})
        rows[-1] |= {"least": min(found), "most": max(found)}
        print(rows[-1], flush=True)
    data = ["--data.format", "digits", "--data.input_size", "40"]
    neighbours = evaluate(args.checkpoint, overrides=data, knn=20)
    rows.append({"form": "20 nearest neighbours", "top1": neighbours["knn_top1"]})
    print(rows[-1])
    record = {
        "what": "rmt_nano of Fashion-MNIST carried over to digits",
        "command": f"python benchmarks/finetuning.py RUN --epochs {args.epochs} "
        f"--seeds {args.seeds}",
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


if __name__ == "__main__":
    main()
