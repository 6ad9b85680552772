"""A cache of tables for eager calls: the most recently used ones, within a limit of memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Limit on all tables together: images of many different sizes must not fill the memory. One pass
#: of a detector over an 800 × 1333 image needs about 100 MB.
LIMIT_BYTES = 2**28
#: Limit on one table: a larger one would evict the others, and building it costs little compared
#: with the matrix products that it is used in.
LIMIT_ONE = LIMIT_BYTES // 4

_tables: OrderedDict[tuple, Tensor] = OrderedDict()
_lock = threading.Lock()


def cached(build: Callable[..., Tensor], *key: Any) -> Tensor:
    """Return ``build(*key)``, from the cache if the key consists of plain numbers.

    A traced call builds the table in its own graph, so that sizes may stay symbolic. Fake tensors
    and the wrappers of ``torch.func`` are valid in one call only and are never kept.
    """
    if traced() or not _plain(key):
        return build(*key)
    key = (build, *key)
    with _lock:
        if key in _tables:
            _tables.move_to_end(key)
            return _tables[key]
    # A table built inside inference_mode could not be saved for a later backward pass.
    with torch.inference_mode(False):
        table = build(*key[1:])
    if table.nbytes <= LIMIT_ONE:
        _keep(key, table)
    return table


def clear() -> None:
    """Drop every table."""
    with _lock:
        _tables.clear()


def _keep(key: tuple, table: Tensor) -> None:
    with _lock:
        _tables[key] = table
        while sum(kept.nbytes for kept in _tables.values()) > LIMIT_BYTES:
            _tables.popitem(last=False)


def _plain(key: tuple) -> bool:
    if any(isinstance(part, Tensor | torch.SymInt) for part in key) or inside_transform():
        return False
    return type(torch.empty(0, device="cpu")) is Tensor  # not the fake tensor of some mode


def traced() -> bool:
    """Return whether this call becomes a graph: sizes may then be symbolic."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def inside_transform() -> bool:
    """Return whether a ``torch.func`` transform wraps new tensors (grad, jvp, functionalize)."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._functorch.is_functorch_wrapped_tensor(torch.empty(0, device="cpu"))
