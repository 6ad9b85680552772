"""A benchmark as a Markdown table, as CSV with the columns of timm's benchmark, and as a record."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from rmt.data.plots import write_table
from rmt.deployment.benchmark import BenchmarkReport, Row
from rmt.deployment.candidates import Size
from rmt.deployment.timing import Clock
from rmt.files import for_people
from rmt.messages import printable

_CLOCKS: dict[Clock, str] = {
    "cpu": "CPU time of the process",
    "cuda": "time between two CUDA events",
    "wall": "time that passed",
}
_COLUMNS = (
    *("model", "engine", "form", "precision", "size", "batch", "ms a batch (quartiles)"),
    *("images/s", "speed", "memory MB", "parameters M", "GMACs"),
)


def facts(report: BenchmarkReport) -> str:
    """Return what the times and the memory of a report are."""
    return (
        f"Times are the {_CLOCKS[report.clock]} for one call of the network alone, without "
        "gradients, on tensors that are in memory already: reading, decoding, resizing and copying "
        f"images are not in it. Median and quartiles of {report.rounds} rounds, in each of which "
        "all variants of a size and batch run once; speed is relative to the first of them, the "
        "median of the rounds' ratios. Memory is what PyTorch allocates in a call at most, beyond "
        "weights and images; exported networks are not measured. MACs are those of convolutions, "
        "linear layers and attention for one image, in 1e9; of detectors, without the heads."
    )


def markdown(report: BenchmarkReport) -> str:
    """Return the table with its heading, and the reasons of what failed."""
    versions = ", ".join(f"{name} {value}" for name, value in report.versions.items())
    lines = [f"{report.machine}, {_threads(report)}; {versions}; {_today()}"]
    lines += ["", facts(report), ""]
    lines += [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
    lines += [_line(_cells(row, report.clock)) for row in report.rows]
    reasons = [f"* {_title(row)} failed: {row.error}" for row in report.failed]
    return "\n".join([*lines, *([""] if reasons else []), *reasons])


def record(report: BenchmarkReport, command: str) -> dict[str, Any]:
    """Return plain values: what was measured, by which command, where, when, and all rows.

    Args:
        report: of the benchmark.
        command: that repeats it.
    """
    return {
        "what": "inference of networks alone, all variants of a size and batch in turns",
        "command": command,
        "date": _today(),
        "machine": f"{report.machine}; device {report.device}, {_threads(report)}",
        "note": facts(report),
        "versions": report.versions,
        "clock": report.clock,
        "rows": for_people([_row(row, report.clock) for row in report.rows]),
    }


def write_csv(report: BenchmarkReport, path: Path) -> None:
    """Write the rows as CSV; the first columns are those of timm's benchmark."""
    write_table(path, for_people([_row(row, report.clock) for row in report.rows]))


def _row(row: Row, clock: Clock) -> dict[str, Any]:
    """Return a row with timm's names, times in milliseconds, parameters in millions."""
    about, cost = row.candidate, row.cost
    times = {name: _quartiles(row, name) for name in (clock, "wall", "cpu")}
    step = times[clock][1]
    return {
        "model": printable(about.source.name),
        "infer_samples_per_sec": None if step is None else 1e3 * about.batch / step,
        "infer_step_time": step,
        "infer_batch_size": about.batch,
        "infer_img_size": int(size) if (size := _size(about.size)).isdigit() else size,
        "infer_gmacs": None if cost is None else cost.products / 1e9,
        "param_count": None if cost is None else cost.params / 1e6,
        "engine": about.engine,
        "form": about.form,
        "precision": about.precision,
        "speed": row.speed,
        "step_time_q1": times[clock][0],
        "step_time_q3": times[clock][2],
        **_named("wall_time", times["wall"]),
        **_named("cpu_time", times["cpu"]),
        "peak_memory_mb": None if row.peak_memory is None else row.peak_memory / 1e6,
        "error": row.error,
    }


def _named(name: str, quartiles: Sequence[float | None]) -> dict[str, float | None]:
    return dict(zip((f"{name}_q1", name, f"{name}_q3"), quartiles, strict=True))


def _quartiles(row: Row, clock: Clock) -> list[float | None]:
    """Return the first quartile, the median and the third, in milliseconds."""
    if not row.laps:
        return [None] * 3
    return (1e3 * np.quantile(row.times(clock), (0.25, 0.5, 0.75))).tolist()


def _cells(row: Row, clock: Clock) -> list[str]:
    about, cost = row.candidate, row.cost
    first, middle, third = _quartiles(row, clock)
    time, rate = "failed", ""
    if middle is not None:
        time = f"{middle:.4g} ({first:.4g} – {third:.4g})"
        rate = f"{1e3 * about.batch / middle:.4g}"
    return [
        *(printable(about.source.name), about.engine, about.form or "", about.precision),
        *(_size(about.size, between="×"), str(about.batch), time, rate),
        "" if row.speed is None else f"{row.speed:.2f}",
        "" if row.peak_memory is None else f"{row.peak_memory / 1e6:.0f}",
        *(("", "") if cost is None else (f"{cost.params / 1e6:.1f}", f"{cost.products / 1e9:.2f}")),
    ]


def _title(row: Row) -> str:
    size = _size(row.candidate.size, between="×")
    return f"{row.candidate.label}, {size}, batch {row.candidate.batch}"


def _threads(report: BenchmarkReport) -> str:
    return "one thread" if report.threads == 1 else f"{report.threads} threads"


def _size(size: Size, *, between: str = "x") -> str:
    """Return the side of a square, or height and width."""
    height, width = size
    return str(height) if height == width else f"{height}{between}{width}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _today() -> str:
    return datetime.now(UTC).date().isoformat()
