"""Measure time and peak memory of a detector at 800x1280: inference, and one training step.

Each case runs in a process of its own, so that one does not count for another. On a CPU, the
peak is the resident memory of the process beyond what it held before the call, and the seconds are
CPU seconds, which other jobs affect little. On a GPU, the peak is what torch allocated, and the
seconds are those of the second call.

Run: python benchmarks/detection_memory.py [--device cuda] [--heads retinanet mask_rcnn]
     [--models rmt_t rmt_s] [--modes inference training] [--note TEXT]
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

import rmt
from rmt.detection import create_detector

RESULT = Path(__file__).parent / "results" / "detection_memory.json"
SIZE = (800, 1280)
MODES = ("inference", "training", "training, checkpointing")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", nargs="+", default=["retinanet", "mask_rcnn"])
    parser.add_argument("--models", nargs="+", default=["rmt_t", "rmt_s"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--one", nargs=3, metavar=("HEAD", "MODEL", "MODE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, device=args.device)))
        return
    machine = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    record = {
        "what": "detectors at 800x1280, one image, float32",
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), {machine}",
        "note": args.note,
        "versions": {module.__name__: module.__version__ for module in (rmt, torch)},
        "rows": [],
    }
    for case in itertools.product(args.heads, args.models, args.modes):
        command = [sys.executable, __file__, "--device", args.device, "--one", *case]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        row = dict(zip(("head", "model", "mode"), case, strict=True))
        record["rows"].append(row | json.loads(done.stdout.splitlines()[-1]))
        RESULT.write_text(json.dumps(record, indent=1) + "\n")
        print(record["rows"][-1], flush=True)


def measure(head: str, name: str, mode: str, *, device: str) -> dict[str, float]:
    """Return seconds and peak MiB of one call; on a GPU of the second."""
    torch.manual_seed(0)
    model = create_detector(head, name).to(device).train(mode != "inference")
    model.set_grad_checkpointing("checkpointing" in mode)
    images = [torch.rand(3, *SIZE, device=device)]
    target = {
        "boxes": torch.tensor([[100.0, 100, 300, 300]]),
        "labels": torch.tensor([0]),
        "masks": torch.ones(1, *SIZE, dtype=torch.uint8),
    }
    targets = [{key: value.to(device) for key, value in target.items()}]

    def step() -> None:
        if mode == "inference":
            with torch.inference_mode():
                model(images, resize=False)
        else:
            sum(model(images, targets, resize=False).values()).backward()

    if device == "cuda":
        step()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    clock = time.monotonic if device == "cuda" else time.process_time
    before, started = _resident(), clock()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = _resident() - before
    return {"seconds": round(clock() - started, 2), "peak_mib": round(peak)}


def _resident() -> float:
    """Return the largest resident memory that this process has had, in MiB (Linux counts KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
