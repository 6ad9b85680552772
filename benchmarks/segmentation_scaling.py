"""Time and peak memory of RMT-S + Semantic FPN on one image, over image sizes.

Each size runs in a process of its own, so that the peak resident memory is that size's (including
about 0.5 GB of Python and the libraries). Time is CPU time of the process, which other work on the
machine disturbs less than wall time: the median over the repeats after a warm-up call, on one CPU
thread in float32. Each size is measured in four ways:

* ``logits``: ``model(image)``, logits at image size;
* ``logits, kept``: the same after ``rmt.keep_memory()``;
* ``labels, kept``: from the photo to its label map, as ``rmt predict --min-size 0`` does;
* ``windows, kept``: the same in windows of 512 pixels side by side.

Run: python benchmarks/segmentation_scaling.py [--repeats 3]
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results"
WINDOW = 512
SIZES = [(512, 512), (1024, 1024), (1024, 2048), (2048, 2048)]
WAYS = ("logits", "logits, kept", "labels, kept", "windows, kept")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--one", nargs=2, type=int, metavar=("H", "W"), help="one size, as JSON")
    parser.add_argument("--way", choices=WAYS, default=WAYS[0], help="with --one")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, repeats=args.repeats, way=args.way)))
        return
    rows = []
    for height, width in SIZES:
        row: dict = {"height": height, "width": width, "gmacs": macs(height, width)}
        for way in WAYS:
            words = ["--one", str(height), str(width), "--repeats", str(args.repeats)]
            row[way] = in_own_process([*words, "--way", way])
        rows.append(row)
        print(row, flush=True)
    import torch

    import rmt

    record = {
        "what": "RMT-S + Semantic FPN, 150 classes, one image, float32, CPU",
        "command": f"python benchmarks/segmentation_scaling.py --repeats {args.repeats}",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, 1 thread of {os.cpu_count()} cores",
        "note": args.note,
        "versions": {"rmt": rmt.__version__, "torch": torch.__version__},
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "segmentation_scaling.json").write_text(json.dumps(record, indent=1) + "\n")


def in_own_process(words: list[str]) -> dict:
    done = subprocess.run(
        [sys.executable, __file__, *words],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def macs(height: int, width: int) -> float:
    """Return 10⁹ multiply-accumulates of one image."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import rmt

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        rmt.create_segmenter("semantic_fpn", "rmt_s").eval()(torch.zeros(1, 3, height, width))
    return round(counter.get_total_flops() / 2e9, 1)


def measure(height: int, width: int, *, repeats: int, way: str) -> dict:
    import torch

    import rmt
    from rmt.segmentation.inference import label_map
    from rmt.segmentation.recipe import Inference

    if way.endswith("kept"):
        assert rmt.keep_memory(), "this C library cannot keep memory"
    window = WINDOW if way.startswith("windows") else 0
    options = Inference(min_size=0, window=window, stride=window)
    torch.manual_seed(0)
    model = rmt.create_segmenter("semantic_fpn", "rmt_s").eval()
    photo = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    image = torch.randn(1, 3, height, width)
    seconds = []
    with torch.inference_mode():
        for _ in range(1 + repeats):
            started = time.process_time()
            if way.startswith("logits"):
                model(image)
            else:
                label_map(model, photo, options)
            seconds.append(time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": round(median(seconds[1:]), 2), "peak_gb": round(peak * 1024 / 1e9, 2)}


if __name__ == "__main__":
    main()
