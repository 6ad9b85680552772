"""Do loading and prediction stay as fast as in an older checkout of this repository?

Each checkout has a process of its own, and the two take turns pass by pass, so that other load on
the machine affects both. The images are those of benchmarks/loading.py and prediction.py; the older
checkout writes the model, which both load. CPU time on one thread is what counts.

    git worktree add /tmp/older COMMIT
    python benchmarks/checkouts.py /tmp/older [--images 300] [--rounds 7] [--note TEXT]
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
LAYOUTS = ("class folders", "tar", "webdataset shards")


def answer(checkout: Path, data: Path) -> None:
    """Run in a process of its own: import rmt from a checkout, and time the passes asked for."""
    sys.path.insert(0, str(checkout / "src"))
    import torch

    import rmt
    from rmt.classification.datamodule import ClassificationData
    from rmt.training.fit import load_recipe

    assert Path(rmt.__file__).is_relative_to(checkout)
    torch.set_num_threads(1)
    rmt.keep_memory()

    def loading(root: Path) -> Callable[[int], float]:
        options = [f"--data.root={root}", "--data.batch_size=50", "--data.num_workers=0"]
        recipe = load_recipe("imagenet/rmt_s", [*options, "--data.repeats=1"])
        loader = ClassificationData(recipe).train_loader()

        def one_pass(epoch: int) -> float:
            loader.batch_sampler.set_epoch(epoch)
            start = time.process_time()
            count = sum(len(images) for images, *_ in loader)
            return (time.process_time() - start) / count

        return one_pass

    if not (data / "model").exists():
        model = rmt.create_model("rmt_nano", 10)
        size = {"input_size": (3, 40, 40), "crop_pct": 1.0, "interpolation": "bilinear"}
        model.pretrained_cfg = model.pretrained_cfg | size
        model.save_pretrained(data / "model")
    predictor = rmt.Predictor.from_checkpoint(data / "model")
    paths = sorted((data / "images").iterdir())

    def predicting(epoch: int) -> float:
        start = time.process_time()
        for path in paths:
            predictor(path)
        return (time.process_time() - start) / len(paths)

    passes = {name: loading(data / name) for name in LAYOUTS} | {"rmt.Predictor": predicting}
    print("ready", flush=True)
    for line in sys.stdin:
        name, epoch = line.rstrip("\n").split("|")
        print(passes[name](int(epoch)), flush=True)


class Checkout:
    """A process that times passes with the package of a checkout."""

    def __init__(self, folder: Path, data: Path) -> None:
        command = [sys.executable, __file__, "--answer", str(folder.resolve()), str(data)]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=env, **pipes)
        while (line := self.process.stdout.readline()) and line.strip() != "ready":
            pass
        if not line:
            raise SystemExit(f"{folder}: its package could not be timed; its own message is above")

    def __call__(self, name: str, epoch: int) -> float:
        self.process.stdin.write(f"{name}|{epoch}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def main() -> int:
    from loading import crops, write
    from prediction import write_images
    from record import write_record

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("older", type=Path, help="folder of the older checkout")
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--note", default="", help="what else is known of the machine")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write(data, crops(args.images))
        (data / "images").mkdir()
        write_images(data / "images", args.images)
        older, now = Checkout(args.older, data), Checkout(HERE, data)
        for name in (*LAYOUTS, "rmt.Predictor"):
            ratios, speeds = [], []
            for epoch in range(args.rounds + 1):
                order = (now, older) if epoch % 2 else (older, now)
                seconds = {each: each(name, epoch) for each in order}
                if epoch:  # the first pass warms up
                    ratios.append(seconds[older] / seconds[now])
                    speeds.append(1 / seconds[now])
            row = {
                "pass": name,
                "images_per_cpu_second": round(statistics.median(speeds), 1),
                "speed_to_older": round(statistics.median(ratios), 3),
                "quartiles": [round(each, 3) for each in statistics.quantiles(ratios)],
            }
            print(row)
            rows.append(row)
    revision = ["git", "-C", str(args.older), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(revision, capture_output=True, text=True, check=True).stdout.strip()
    path = write_record(
        "checkouts",
        what=f"loading and prediction, compared with commit {commit}",
        command=f"python benchmarks/checkouts.py CHECKOUT_OF_{commit} --images {args.images} "
        f"--rounds {args.rounds}",
        machine=f"one thread of {platform.processor() or platform.machine()}",
        notes=[args.note],
        packages=["torch", "pillow", "timm"],
        rows=rows,
    )
    print(path)
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:
        answer(*map(Path, sys.argv[2:4]))
    else:
        sys.exit(main())
