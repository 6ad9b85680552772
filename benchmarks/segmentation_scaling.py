"""Time and peak memory of RMT-S + Semantic FPN on one image, over image sizes.

Each size runs in a process of its own, so that the peak resident memory is that size's (Python and
the libraries, about 0.5 GB, included). Time is the median over the repeats, behind a first call to
warm up, of ``model(image)`` on one CPU thread in float32, logits at image size included: by the
clock, and the processor time of the process, which other work on the machine disturbs less.

Each size is measured in three ways: whole, as it comes; whole, with a C library that is told by two
environment variables to keep the memory of large tensors instead of handing it back each time
(`kept`); and in windows of 512 pixels side by side (`windows`), for sizes that they tile.

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
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}
WINDOW = 512
SIZES = [(512, 512), (768, 768), (1024, 1024), (1024, 2048), (1536, 1536), (2048, 2048)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--one", nargs=2, type=int, metavar=("H", "W"), help="one size, as JSON")
    parser.add_argument("--window", type=int, default=0, help="with --one: side of the windows")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, repeats=args.repeats, window=args.window)))
        return
    rows = []
    for height, width in SIZES:
        words = ["--one", str(height), str(width), "--repeats", str(args.repeats)]
        row = in_own_process(words, {})
        others = {"kept": in_own_process(words, KEEP)}
        if not (height % WINDOW or width % WINDOW):
            others["windows"] = in_own_process([*words, "--window", str(WINDOW)], {})
        for name, other in others.items():
            row[name] = {key: other[key] for key in ("cpu_seconds", "peak_gb")}
        rows.append(row)
        print(row, flush=True)
    import torch

    import rmt

    record = {
        "what": "RMT-S + Semantic FPN, 150 classes, one image, float32, CPU",
        "command": f"python benchmarks/segmentation_scaling.py --repeats {args.repeats}",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {rows[0]['threads']} of {os.cpu_count()} cores",
        "note": args.note,
        "versions": {"rmt": rmt.__version__, "torch": torch.__version__},
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "segmentation_scaling.json").write_text(json.dumps(record, indent=1) + "\n")


def in_own_process(words: list[str], allocator: dict[str, str]) -> dict:
    done = subprocess.run(
        [sys.executable, __file__, *words],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | allocator,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(height: int, width: int, *, repeats: int, window: int) -> dict:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from rmt.segmentation import create_segmenter
    from rmt.segmentation.inference import segment
    from rmt.segmentation.recipe import Inference

    options = Inference(window=window, stride=window)

    torch.manual_seed(0)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        create_segmenter("semantic_fpn", "rmt_s").eval()(torch.zeros(1, 3, height, width))
    model = create_segmenter("semantic_fpn", "rmt_s").eval()
    image = torch.randn(1, 3, height, width)
    seconds, cpu_seconds = [], []
    with torch.inference_mode():
        for _ in range(1 + repeats):
            started, cpu_started = time.perf_counter(), time.process_time()
            segment(model, image, options)
            seconds.append(time.perf_counter() - started)
            cpu_seconds.append(time.process_time() - cpu_started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "height": height,
        "width": width,
        "seconds": round(median(seconds[1:]), 2),
        "cpu_seconds": round(median(cpu_seconds[1:]), 2),
        "gmacs": round(counter.get_total_flops() / 2e9, 1),
        "peak_gb": round(peak * 1024 / 1e9, 2),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()
