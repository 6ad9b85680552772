"""Limits that a test puts on the code it runs: memory and time."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory_limit(megabytes: int) -> Iterator[None]:
    """Let this process take at most so much address space more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Fail if the block takes more processor time than that."""
    started = time.process_time()
    yield
    took = time.process_time() - started
    assert took < seconds, f"took {took:.1f} s of processor time"


@contextmanager
def file_size_limit(kilobytes: int) -> Iterator[None]:
    """Let this process write no file longer than that, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 2**10, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
