"""Peak memory and time of a training step of RMT-S: eager float32, and what a recipe can change.

    python benchmarks/training_memory.py [--batch 8] [--repeats 3] [--device cpu]

Each variant runs in a process of its own, so that the peak is its own; the time is the median over
the steps. On a CPU, the time is CPU time of the process and not wall time, because other work may
share the cores; and memory is kept as the command `rmt` keeps it (`rmt.keep_memory`), except in the
first variant.
"""

import argparse
import datetime
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
VARIANTS = {
    "float32, memory not kept": {"keep": False},
    "float32": {},
    "float32, compiled": {"compile": True},
    "bfloat16": {"precision": "bf16"},
    "float32, checkpointing": {"checkpointing": True},
    "bfloat16, checkpointing": {"precision": "bf16", "checkpointing": True},
}


def measure(variant: dict, args: argparse.Namespace) -> dict[str, float]:
    import torch

    import rmt

    if variant.get("keep", True):
        rmt.keep_memory()
    device = torch.device(args.device)
    torch.manual_seed(0)
    model = rmt.create_model(args.model).to(device).train()
    model.set_grad_checkpointing(variant.get("checkpointing", False))
    network = torch.compile(model) if variant.get("compile") else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images = torch.randn(args.batch, 3, 224, 224, device=device)
    labels = torch.randint(1000, (args.batch,), device=device)
    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    seconds = []
    for _ in range(args.repeats + 1):  # the first one warms up
        started = clock()
        with torch.autocast(
            device.type, torch.bfloat16, enabled=variant.get("precision") == "bf16"
        ):
            loss = torch.nn.functional.cross_entropy(network(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(clock() - started)
    if on_gpu:
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak_gib": round(peak / 2**30, 2), "seconds": round(statistics.median(seconds[1:]), 2)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="rmt_s")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(measure(VARIANTS[args.variant], args)))
        return
    rows = []
    for variant in VARIANTS:
        command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append({"variant": variant, **json.loads(printed.splitlines()[-1])})
        print(rows[-1], flush=True)
    import torch

    import rmt

    result = {
        "what": f"a training step of {args.model}, batch {args.batch}, 224x224, on {args.device}",
        "command": " ".join(["python", "benchmarks/training_memory.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
        "note": "seconds of CPU time on a CPU; the peak on a CPU includes the libraries (0.5 GiB)",
        "versions": {"rmt": rmt.__version__, "torch": torch.__version__},
        "rows": rows,
    }
    suffix = "" if args.device == "cpu" else f"_{args.device}"
    (RESULTS / f"training_memory{suffix}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
