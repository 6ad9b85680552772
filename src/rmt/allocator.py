"""Memory of the process: kept for the next tensors instead of handed back to the system."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h: -1 switches the trimming of the heap off, 0 the mapping of large blocks.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_memory() -> bool:
    """Make the C library keep freed memory, for the whole process and permanently.

    By default glibc hands each freed block of 32 MB or more back to the system, and gets the next
    one page by page, zeroed anew: a sixth of the time of a training step of RMT-S with 32 images on
    the CPU (``benchmarks/training_memory.py``). The process then stays as large as it once was; the
    peak itself grows by a few percent. The command ``rmt`` calls this; in a program of your own,
    call it before the first large tensor.

    Returns:
        False if the C library has no such setting (macOS, Windows, musl); then nothing has changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # no such function; Windows has no such library
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, -1) and mallopt(_M_MMAP_MAX, 0))
