"""Which attention kernel is fastest for a line or a map of a given size on this machine?

The kernels take turns in one process, so that other load on the machine affects all of them.
Medians and their ratios to `plain` go to benchmarks/results/attention_backends_DEVICE_DTYPE.json.

    python benchmarks/attention_backends.py [--device cuda] [--dtype bfloat16]
"""

import argparse
import datetime
import json
import platform
import statistics
import time
from pathlib import Path

import torch

import rmt
from rmt.ops import BACKENDS
from rmt.ops.geometry import log_decay_rates

LINES = (7, 14, 28, 49, 56, 100, 200)
MAPS = ((7, 7), (14, 14), (28, 28), (50, 80))
HEADS, WIDTH = 8, 32
ROUNDS = 7


def tensors(height: int, width: int, device: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return q, k, v; the number of tokens is about the same for any size, so rounds are short."""
    batch = max(1, 3136 // (height * width))
    shape = (batch, height, width, HEADS, WIDTH)
    return [torch.randn(shape, device=device, dtype=dtype) * WIDTH**-0.25 for _ in range(3)]


def once(backend: str, qkv: list[torch.Tensor], *, decomposed: bool, train: bool) -> float:
    rates = log_decay_rates(HEADS, 8)
    start = time.perf_counter()
    with torch.set_grad_enabled(train):
        out = rmt.manhattan_attention(*qkv, rates, decomposed, backend)
        if train:
            out.sum().backward()
    if out.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(qkv: list[torch.Tensor], *, decomposed: bool, train: bool) -> dict:
    for tensor in qkv:
        tensor.requires_grad_(train)
    names = [
        name
        for name, kernel in BACKENDS.items()
        if name != "reference" and kernel.why_not(*qkv, decomposed=decomposed) is None
    ]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(ROUNDS + 1):
        for name in names:
            taken = once(name, qkv, decomposed=decomposed, train=train)
            if turn:  # the first round is a warm-up
                seconds[name].append(taken)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "milliseconds": {name: round(1e3 * value, 3) for name, value in median.items()},
        "relative_to_plain": {
            name: round(value / median["plain"], 3) for name, value in median.items()
        },
        "chosen": next(
            n
            for n, what in rmt.ops.explain(*qkv, decomposed=decomposed).items()
            if what == "chosen"
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", default=Path(__file__).parent / "results")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    cases = [(f"lines of {n}", (n, n), True) for n in LINES]
    cases += [(f"map of {h} × {w}", (h, w), False) for h, w in MAPS]
    rows = {}
    for name, size, decomposed in cases:
        for train in (False, True):
            label = f"{name}, {'training' if train else 'inference'}"
            rows[label] = compare(
                tensors(*size, args.device, dtype), decomposed=decomposed, train=train
            )
            print(f"{label:32}", rows[label]["relative_to_plain"], rows[label]["chosen"])
    result = {
        "what": f"attention kernels, {args.dtype}: median time of one call, "
        "alternating in one process",
        "command": f"python benchmarks/attention_backends.py --device {args.device} "
        f"--dtype {args.dtype}",
        "date": datetime.date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if args.device == "cuda" else platform.machine(),
        "note": f"{torch.get_num_threads()} CPU threads, {HEADS} heads of {WIDTH}, {ROUNDS} rounds",
        "versions": {"torch": torch.__version__},
        "rows": rows,
    }
    path = Path(args.out) / f"attention_backends_{args.device}_{args.dtype}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
