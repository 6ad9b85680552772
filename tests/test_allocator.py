"""Freed memory is kept: the next tensor of its size needs no new page of the system."""

import ctypes
import platform
import subprocess
import sys

import pytest

import rmt

_COUNT_NEW_PAGES = """
import resource, sys, torch, rmt
kept = rmt.keep_memory() if sys.argv[1] == "keep" else None
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MB
new = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, new * resource.getpagesize())
"""


def new_bytes(mode: str) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", _COUNT_NEW_PAGES, mode], check=True, capture_output=True, text=True
    )
    kept, count = done.stdout.split()
    return kept, int(count)


def test_a_freed_tensor_gives_its_place_to_the_next() -> None:
    """With glibc it returns True; other C libraries do not have the setting."""
    kept, new = new_bytes("keep")
    has_switch = platform.libc_ver()[0] == "glibc"
    assert kept == str(has_switch)
    if has_switch:
        assert new < 2**20
        assert new_bytes("leave")[1] > 2**25


@pytest.mark.parametrize("library", [object(), None])
def test_other_c_libraries_are_left_alone(library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: None) -> object:
        if library is None:
            raise TypeError("bad argument type for built-in operation")
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert rmt.keep_memory() is False
