"""Train a small classification recipe and record its test accuracy.

    python benchmarks/classification.py small/fashion_mnist [--run FOLDER] [--note TEXT] [--key ...]

A finished run in FOLDER is recorded as it is; otherwise it is trained there. Further options change
recipe keys.
"""

import argparse
import datetime
import json
import os
import platform
from pathlib import Path

import lightning
import timm
import torch

import rmt
from rmt.tools.train import train

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="small/digits")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--processes", type=int, default=1, help="number of processes of the run")
    args, overrides = parser.parse_known_args()
    run = args.run or Path("runs") / args.recipe
    if not (run / "metrics.json").is_file() and (
        status := train(args.recipe, overrides=overrides, out=run)
    ):
        return status
    metrics = json.loads((run / "metrics.json").read_text())
    description = json.loads((run / "config.json").read_text())
    recipe = description["info"]["recipe"]
    start = "fine-tuned" if recipe["model"]["checkpoint"] else "from scratch"
    model = rmt.load(run)
    name = args.recipe.removeprefix("small/").replace("/", "_")
    result = {
        "what": f"{recipe['title']}, {start}",
        "command": " ".join(["rmt train", args.recipe, *overrides]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()} CPU with {os.cpu_count()} cores, "
        f"{args.processes} process(es) of one thread",
        "note": args.note,
        "versions": {
            "rmt": rmt.__version__,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "lightning": lightning.__version__,
        },
        "rows": [
            {
                "model": description["config"]["architecture"],
                "params": sum(p.numel() for p in model.parameters()),
                "epochs": recipe["schedule"]["epochs"],
                "minutes": round(metrics["seconds"] / 60, 1),
                "weights": metrics["best"],
                "val_top1": metrics["val_top1"],
                "test_top1": metrics["test"]["top1"],
                "test_images": int(metrics["test"]["images"]),
                "history": metrics["history"],
            }
        ],
    }
    path = RESULTS / f"classification_{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
