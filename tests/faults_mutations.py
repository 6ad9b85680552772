"""Values that no file should hold, put into the place of good ones, and what must come of it."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from limits import time_limit

#: How many inputs are tried: a few in each run of the tests, more in the slow ones.
few_and_many = pytest.mark.parametrize(
    "factor", [1, pytest.param(30, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
# Small: the first error of a kind may import a library.
MEMORY = 1500

#: Of JSON and YAML.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 2**31, 2**63, 10**400, -(10**400), 1e308, float("nan"),
    float("inf"), "", " ", "x", "1", "1e400", "..", "../../secret.png", "/etc/hostname", "a\0b",
    "\x1b[2J\x07", "\ud800", "\u202e", "x" * 5000, [], {}, [[]], [None], {"": {}}, [1, "x", None],
    {"a": [1]}, [[[[[[[[]]]]]]]],
)  # fmt: skip


def spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container in a value with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from spots(value[key])


def spoiled(value: Any, draw: random.Random, *, most: int = 3) -> Any:
    """Return a value with a few entries replaced, dropped, doubled or moved."""
    value = copy.deepcopy(value)
    for _ in range(draw.randint(1, most)):
        found = list(spots(value)) if isinstance(value, dict | list) else []
        if not found:
            return draw.choice(ODD)
        container, key = draw.choice(found)
        how = draw.random()
        if how < 0.65:
            container[key] = copy.deepcopy(draw.choice(ODD))
        elif how < 0.8:
            del container[key]
        elif how < 0.9 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif isinstance(container, dict):
            container[str(draw.choice(ODD))[:100]] = container.pop(key)
        else:
            container[key] = copy.deepcopy(draw.choice(found)[0])
    return value


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return bytes of which some are changed, lost, or twice there."""
    at = draw.randrange(len(content) + 1)
    how = draw.random()
    if not content:
        return draw.randbytes(8)
    if how < 0.3:
        return content[:at]
    if how < 0.4:
        return content[:at] + content[draw.randrange(len(content) + 1) :]
    changed = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        at = draw.randrange(len(content))
        size = draw.choice((1, 2, 4, 8))
        new = draw.choice((b"\0" * size, b"\xff" * size, draw.randbytes(size)))
        changed[at : at + size] = new
    return bytes(changed)


def of_safetensors(header: dict[str, Any], data: bytes, text: str | None = None) -> bytes:
    """Return the content of a file with this header."""
    packed = (json.dumps(header) if text is None else text).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(packed)) + packed + data


def many(count: int, check: Callable[[random.Random], None]) -> None:
    """Run a check so many times, each with other random numbers; the same ones each time."""
    run = settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
    )(given(st.integers(0, 2**32))(lambda seed: check(random.Random(seed))))
    run()


@contextmanager
def untouched(*folders: Path) -> Iterator[None]:
    """Fail if anything in these folders is written, made or deleted."""

    def seen() -> dict[str, tuple[int, int]]:
        found = (path for folder in folders for path in folder.rglob("*"))
        return {str(p): (s.st_size, s.st_mtime_ns) for p in found for s in [p.lstat()]}

    before = seen()
    yield
    assert seen() == before


def handled(run: Callable[[], Any]) -> bool:
    """Return whether something ended well; if not, it must have said why, in a message of ours."""
    error: Exception | None = None
    with time_limit(20):
        try:
            run()
        except (ValueError, OSError) as raised:
            error = raised
    if error is None:
        return True
    words = str(error)
    assert len(words) > 10, repr(error)
    assert not any(bad in words for bad in ("Traceback", "'NoneType' object", "has no attr")), words
    assert not isinstance(error, UnicodeError | json.JSONDecodeError | yaml.YAMLError), words
    return False
