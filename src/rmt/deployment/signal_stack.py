"""The stack on which a thread handles signals, which OpenVINO replaces.

While a compiled model lives, OpenVINO's CPU plugin (2026.4) has a small stack of its own in place
of the thread's. It puts the old one back when the model is deleted, on the thread that deletes it:
if that is another one, the first thread is left with a stack that was unmapped, and its next
signal, say the SIGTERM that a job should save its state at, ends the process.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _SignalStack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (
        ("pointer", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("size", ctypes.c_size_t),
    )


@contextmanager
def keep_signal_stack() -> Iterator[None]:
    """Leave the calling thread with the signal stack that it had before, on Linux."""
    if sys.platform != "linux":
        yield
        return
    sigaltstack, before = ctypes.CDLL(None).sigaltstack, _SignalStack()
    sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        sigaltstack(ctypes.byref(before), None)
