"""Time and memory of functions that take turns, so that what else a machine does meets them all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

K = TypeVar("K", bound=Hashable)
Call = Callable[[], Any]
Clock = Literal["cpu", "cuda", "wall"]
#: Calls before the first that counts: they compile, and fill caches.
WARM_UP = 2


@dataclass(frozen=True)
class Lap:
    """One call.

    Attributes:
        wall: seconds that passed, until the device was done.
        cpu: seconds that all threads of this process computed.
        cuda: seconds between two events on the GPU; 0 elsewhere.
    """

    wall: float
    cpu: float
    cuda: float = 0.0


def clock_of(device: torch.device, threads: int) -> Clock:
    """Return which of a lap's times is the one to compare.

    With one thread, CPU time leaves out what other processes took; with several it would add up
    what ran side by side.
    """
    if device.type == "cuda":
        return "cuda"
    return "cpu" if device.type == "cpu" and threads == 1 else "wall"


@torch.no_grad()
def take_turns(
    calls: Mapping[K, Call],
    *,
    rounds: int,
    device: torch.device,
    failed: Callable[[K, Exception], object],
) -> dict[K, list[Lap]]:
    """Run each function once per round, after a warm-up of all.

    Args:
        calls: of any names.
        rounds: number of laps of each.
        device: that they run on.
        failed: is told which function raised what; it runs no more, and has no laps.
    """
    laps: dict[K, list[Lap]] = {key: [] for key in calls}
    for turn in range(-WARM_UP, rounds):
        for key in list(laps):
            try:
                lap = _lap(calls[key], device)
            except Exception as error:  # whatever a library raises: the others go on
                del laps[key]
                failed(key, error)
            else:
                if turn >= 0:
                    laps[key].append(lap)
    return laps


@torch.no_grad()
def peak_memory(call: Call, device: torch.device) -> int | None:
    """Return the most memory that a call takes for tensors, beyond what there was before, in bytes.

    These are the allocations of PyTorch: CUDA's counter, and on the CPU the profiler's record. What
    libraries take for themselves is not in it.

    Args:
        call: that ran before, so that caches are filled.
        device: that it runs on.

    Returns:
        None for other devices, which are not measured.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _peak_on_cpu(call) if device.type == "cpu" else None


def _peak_on_cpu(call: Call) -> int:
    # Read when the profiler is first used, which else writes lines of its own to stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    result: Any = profile.profiler
    events = [each for each in result.kineto_results.events() if each.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def _lap(call: Call, device: torch.device) -> Lap:
    if device.type == "cuda":
        return _lap_on_gpu(call, device)
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return Lap(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)


def _lap_on_gpu(call: Call, device: torch.device) -> Lap:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.cuda.device(device):
        first.record()
        call()
        last.record()
    torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Lap(wall=wall, cpu=cpu, cuda=first.elapsed_time(last) / 1e3)
