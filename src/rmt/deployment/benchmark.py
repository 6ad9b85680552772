"""Time, memory and size of models on this machine, all in turns in one process."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from os import cpu_count
from pathlib import Path
from statistics import median
from typing import Any

import torch

from rmt.deployment.candidates import FORMS, PRECISIONS, Candidate, Size, Source, candidates_of
from rmt.deployment.devices import find_device
from rmt.deployment.engines import FILE_ENGINES, check_engine
from rmt.deployment.timing import Call, Clock, Lap, clock_of, peak_memory, take_turns
from rmt.messages import did_you_mean, printable
from rmt.modeling.flops import Flops
from rmt.version import __version__

# Engine -> package whose version matters, beside torch and timm.
_PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}
# Sizes of one model that torch may compile: far more than a benchmark has.
_MOST_COMPILED = 1000


@dataclass(kw_only=True)
class Row:
    """What was measured of a candidate.

    Attributes:
        candidate: what ran.
        laps: one per round.
        speed: of the first candidate of this size and batch, as a share: the median over rounds.
        peak_memory: bytes, see :func:`rmt.deployment.timing.peak_memory`; None if not measured.
        cost: parameters and operations for one image; None if they cannot be counted.
        error: why it did not run; None if it did.
    """

    candidate: Candidate
    laps: list[Lap] = field(default_factory=list)
    speed: float | None = None
    peak_memory: int | None = None
    cost: Flops | None = None
    error: str | None = None

    def times(self, clock: Clock) -> list[float]:
        """Return the seconds of each round."""
        return [getattr(lap, clock) for lap in self.laps]


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """All rows, with what they depend on.

    Attributes:
        rows: in the order of sizes, batches, and candidates.
        clock: which of the times is the one to compare.
        threads: of the CPU.
        device: that the networks ran on.
        rounds: laps of each candidate.
    """

    rows: list[Row]
    clock: Clock
    threads: int
    device: torch.device
    rounds: int

    @property
    def machine(self) -> str:
        """Return the name of the processor or GPU."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{_processor()}, {cpu_count()} cores"

    @property
    def versions(self) -> dict[str, str | None]:
        """Return the versions of the libraries that ran, None for a missing one."""
        engines = {row.candidate.engine for row in self.rows}
        others = [package for engine, package in _PACKAGES.items() if engine in engines]
        ran = {name: _version(name) for name in ("torch", "timm", *others)}
        return {"rmt": __version__, **ran, "python": platform.python_version()}

    @property
    def failed(self) -> list[Row]:
        """Return the rows that have an error instead of numbers."""
        return [row for row in self.rows if row.error is not None]


def benchmark(
    models: str | Path | Sequence[str | Path],
    *,
    img_size: int | Sequence[int | Size] | None = None,
    batch_size: int | Sequence[int] = 1,
    precision: str | Sequence[str] = "float32",
    engine: str | Sequence[str] = "torch",
    form: str | Sequence[str] = "fused",
    threads: int | None = None,
    rounds: int = 9,
    device: str = "auto",
    tell: Callable[[str], object] | None = None,
) -> BenchmarkReport:
    """Measure networks alone, on tensors that are in memory already.

    All candidates of one size and batch take turns: each runs once per round, so that what else the
    machine does meets all of them. Those that fail are reported, and the others go on.

    Args:
        models: names of ours or of timm, randomly initialised; checkpoints; exported files.
        img_size: sides, or pairs of height and width; None takes each model's own.
        batch_size: numbers of images at once.
        precision: ``float32`` or ``bf16`` (weights and images, without autocast).
        engine: as for :func:`rmt.deployment.load.load_with_engine`. Exports are in float32.
        form: ``fused``, ``plain`` (as it is trained) or ``reference`` (attention computed as the
            release does, eagerly), for networks with Manhattan attention.
        threads: of the CPU; None leaves PyTorch's number.
        rounds: laps of each candidate.
        device: where to run; exported networks take the CPU only.
        tell: is given a line of text before each candidate is made.

    Returns:
        One row per candidate.

    Raises:
        FileNotFoundError: if a model is neither a known name nor a file.
        ValueError: for an unknown word, a number below 1, a file that cannot be read, or if
            nothing is left to measure.
    """
    engines, forms, precisions = _list(engine), _list(form), _list(precision)
    sizes, batches = pairs(img_size), _list(batch_size)
    numbers = {"img_size": min([side for own in sizes for side in own], default=1)}
    numbers |= {"batch_size": min(batches, default=0), "rounds": rounds}
    _check(numbers | ({} if threads is None else {"threads": threads}))
    where = _check_words(engines, forms, precisions, device)
    named = [_open(name, engines) for name in _list(models)]
    words = {"engines": engines, "forms": forms, "precisions": precisions}
    groups = _groups(named, sizes, batches, words)
    with torch_threads(threads) as count:
        rows = [
            row
            for own in groups
            for row in _measure(own, rounds, where, clock_of(where, count), tell)
        ]
        return BenchmarkReport(
            rows=rows, clock=clock_of(where, count), threads=count, device=where, rounds=rounds
        )


def _groups(
    sources: Sequence[Source],
    sizes: Sequence[Size],
    batches: Sequence[int],
    words: Mapping[str, Sequence[str]],
) -> list[list[Candidate]]:
    """Return the candidates that take turns: those of one size and batch.

    Raises:
        ValueError: if there are none.
    """
    groups: dict[tuple[Size, int], list[Candidate]] = {}
    for source in sources:
        for size, batch in product(sizes or [source.size], batches):
            found = candidates_of(source, size=size, batch=batch, **words)
            groups.setdefault((size, batch), []).extend(found)
    if not any(groups.values()):
        raise ValueError(
            "nothing to measure: exported networks are fused and in float32, and the reference "
            "runs with the engine torch"
        )
    return [own for own in groups.values() if own]


def _measure(
    candidates: Sequence[Candidate],
    rounds: int,
    device: torch.device,
    clock: Clock,
    tell: Callable[[str], object] | None,
) -> list[Row]:
    """Return the rows of candidates that take turns."""
    rows = [Row(candidate=candidate) for candidate in candidates]
    calls: dict[int, Call] = {}
    cost_of = cache(_cost)  # forms of one model share it

    def failed(key: int, error: Exception) -> None:
        calls.pop(key, None)
        name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        rows[key].error = name + printable(str(error).strip().split("\n")[0], limit=300)

    with _compiling(candidates):
        for key, candidate in enumerate(candidates):
            if tell is not None:
                height, width = candidate.size
                tell(f"{candidate.label}, {height}×{width}, batch {candidate.batch}")
            try:
                calls[key] = candidate.prepare(device)
                rows[key].cost = cost_of(candidate.source, candidate.size)
            except Exception as error:  # whatever a library raises: the others go on
                failed(key, error)
        laps = take_turns(dict(calls), rounds=rounds, device=device, failed=failed)
        for key, own in laps.items():
            rows[key].laps = own
            if candidates[key].engine not in FILE_ENGINES:  # whose memory is not PyTorch's
                with suppress(RuntimeError):  # a profiler that cannot run
                    rows[key].peak_memory = peak_memory(calls[key], device)
    if rows[0].error is None:
        first = rows[0].times(clock)
        for row in rows:
            if row.error is None:
                both = zip(first, row.times(clock), strict=True)
                row.speed = median(one / own for one, own in both)
    return rows


def _cost(source: Source, size: Size) -> Flops | None:
    try:
        return source.cost(size)
    except (NotImplementedError, RuntimeError, ValueError):  # not on the meta device
        return None


@contextmanager
def _compiling(candidates: Sequence[Candidate]) -> Iterator[None]:
    """Let torch compile each candidate for its own size.

    It keeps a limited number of graphs per function, over all models, and then runs the function as
    it is; and it makes sizes symbolic once it has seen several.
    """
    with ExitStack() as stack:
        if any(candidate.engine == "compile" for candidate in candidates):
            import torch._dynamo

            torch._dynamo.reset()
            limits = {"recompile_limit": _MOST_COMPILED, "fail_on_recompile_limit_hit": True}
            limits["accumulated_recompile_limit"] = _MOST_COMPILED
            stack.enter_context(torch._dynamo.config.patch(limits))
        yield


@contextmanager
def torch_threads(count: int | None) -> Iterator[int]:
    """Let PyTorch take so many threads meanwhile; say how many it takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _open(name: str | Path, engines: Sequence[str]) -> Source:
    try:
        return Source.open(name, engines)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{printable(name)!r} is not a model of this package or of timm, nor a file: {error}"
        ) from error


def _check(numbers: dict[str, int]) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


def _check_words(
    engines: Sequence[str], forms: Sequence[str], precisions: Sequence[str], device: str
) -> torch.device:
    """Return the device; raise ``ValueError`` for an unknown word."""
    for name in engines:
        check_engine(name)
    words: list[tuple[str, Sequence[str], Any]] = [
        ("form", forms, FORMS),
        ("precision", precisions, PRECISIONS),
    ]
    for what, given, known in words:
        for name in given:
            if name not in known:
                raise ValueError(f"unknown {what} {name!r}{did_you_mean(name, known)}")
    where = find_device(device)
    if where.type != "cpu" and (exported := [name for name in engines if name in FILE_ENGINES]):
        raise ValueError(
            f"{exported[0]} runs on the CPU here, and the device is {where}: add --device cpu"
        )
    try:
        torch.empty(0, device=where)
    except (AssertionError, RuntimeError) as error:
        reason = printable(str(error).split("\n")[0])
        raise ValueError(f"device {device!r} cannot be used: {reason}") from error
    return where


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str | Path | int) else [*value]


def pairs(sizes: int | Sequence[int | Size] | None) -> list[Size]:
    """Return sizes as heights and widths, nothing for None."""
    return [(each, each) if isinstance(each, int) else each for each in _list(sizes)]


def _processor() -> str:
    """Return the name of the processor, where the system tells it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        names = (line.partition(":")[2] for line in text.splitlines() if "model name" in line)
        return next(names).strip()
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
