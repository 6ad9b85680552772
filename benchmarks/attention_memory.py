"""How much memory does full attention over 50 × 80 tokens take with each kernel?

Each case runs in a fresh process, which samples its resident memory every 2 ms; what it used
before the first call is subtracted. Results go to benchmarks/results/attention_memory.json.

    python benchmarks/attention_memory.py
"""

import argparse
import datetime
import json
import multiprocessing
import platform
import resource
import threading
import time
from pathlib import Path

import torch

import rmt
from rmt.ops.geometry import log_decay_rates

HEIGHT, WIDTH, HEADS, HEAD_WIDTH = 50, 80, 8, 32  # stage 3 of RMT-T for an 800 × 1280 image
CASES = [(calls, train) for calls in (1, 3) for train in (False, True)]


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure(backend: str, calls: int, train: bool) -> float:
    """Return the peak in MB over some successive calls, as in successive blocks."""
    torch.set_num_threads(1)
    shape = (1, HEIGHT, WIDTH, HEADS, HEAD_WIDTH)
    q, k, x = (torch.randn(shape).requires_grad_(train) for _ in range(3))
    rates = log_decay_rates(HEADS, 8)
    corner = [t[:, :4, :4] for t in (q, k, x)]
    rmt.manhattan_attention(*corner, rates, False, backend).sum()  # loads the kernels
    before = peak = resident()
    running = True

    def watch() -> None:
        nonlocal peak
        while running:
            peak = max(peak, resident())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with torch.set_grad_enabled(train):
        for _ in range(calls):
            x = rmt.manhattan_attention(q, k, x, rates, False, backend)
        if train:
            x.sum().backward()
    running = False
    watcher.join()
    return round((peak - before) / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=Path(__file__).parent / "results")
    out = Path(parser.parse_args().out)
    rows = {}
    for calls, train in CASES:
        label = f"{calls} block{'s' if calls > 1 else ''}, {'training' if train else 'inference'}"
        rows[label] = {}
        for backend in ("plain", "sdpa", "sliced"):
            with multiprocessing.get_context("spawn").Pool(1) as fresh:
                rows[label][backend] = fresh.apply(measure, (backend, calls, train))
        print(f"{label:22}", rows[label], "MB")
    result = {
        "what": f"full attention over {HEIGHT}x{WIDTH} tokens, {HEADS} heads of {HEAD_WIDTH}: "
        "peak resident memory minus that before the calls, MB (1e6 bytes)",
        "command": "python benchmarks/attention_memory.py",
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, CPU, float32",
        "versions": {"torch": torch.__version__},
        "rows": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "attention_memory.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
