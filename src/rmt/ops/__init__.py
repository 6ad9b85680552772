"""Manhattan attention as a function of tensors, with a choice of kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rmt.ops import plain, reference, sdpa, sliced
from rmt.ops.geometry import rotation, wide
from rmt.ops.layout import Biases, Line, attend_lines, biases
from rmt.ops.tables import LIMIT_ONE, traced

__all__ = ["BACKENDS", "Backend", "MapTables", "explain", "manhattan_attention", "map_tables"]


def _runs_always(q: Tensor, k: Tensor, v: Tensor, *, decomposed: bool) -> str | None:
    """Return None: the backend runs on every device, dtype and form."""
    return None


@dataclass(frozen=True)
class Backend:
    """One kernel of :func:`manhattan_attention`.

    Attributes:
        attend: ``attend(q, k, v, log_decay, *, decomposed)``, on maps (B, H, W, N, D).
        why_not: ``why_not(q, k, v, *, decomposed)``: the reason why it cannot run on these
            tensors, or None.
        bias_dtype: dtype of the queries -> that of the bias, for kernels that can be given
            ``attend(..., bias=biases)``, built beforehand.
    """

    attend: Callable[..., Tensor]
    why_not: Callable[..., str | None] = _runs_always
    bias_dtype: Callable[[torch.dtype], torch.dtype] | None = None


def _same(dtype: torch.dtype) -> torch.dtype:
    return dtype


def _dense(
    line: Line,
    bias_dtype: Callable[[torch.dtype], torch.dtype],
    why_not: Callable[..., str | None] = _runs_always,
) -> Backend:
    """Return the backend of a kernel that is one function of lines; arguments as of Backend."""

    def attend(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Sequence[float] | Tensor | None,
        *,
        decomposed: bool,
        bias: Biases | None = None,
    ) -> Tensor:
        if bias is None and log_decay is not None:
            size, dtype = (q.shape[1], q.shape[2]), bias_dtype(q.dtype)
            bias = biases(*size, log_decay, decomposed, device=q.device, dtype=dtype)
        return attend_lines(line, q, k, v, bias, decomposed=decomposed)

    return Backend(attend, why_not, bias_dtype)


#: Name -> kernel. The dense ones are functions of lines; the two others take the map.
BACKENDS: dict[str, Backend] = {
    "reference": Backend(reference.attend),
    "plain": _dense(plain.line, wide),
    "sdpa": _dense(sdpa.line, _same, sdpa.why_not),
    "sliced": Backend(sliced.attend, sliced.why_not),
}
#: Line length from which the fused kernel is faster in full precision on the CPU, in tokens.
LONG_LINE = 64


def manhattan_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Sequence[float] | Tensor | None,
    decomposed: bool = True,
    backend: str | None = None,
    *,
    bias: Biases | None = None,
) -> Tensor:
    """Attend over a map with scores that decay with Manhattan distance (paper, eq. 4-6).

    ``softmax(q kᵀ + |Δ| · log γ) v``, over rows and then columns (``decomposed``) or over all
    pairs of tokens. The scores are not scaled here: multiply ``k`` by D^-½ before the call, as the
    module :class:`rmt.ManhattanAttention` does together with the rotation.

    Args:
        q: (B, H, W, N, D), already rotated.
        k: (B, H, W, N, D), already rotated (and scaled).
        v: (B, H, W, N, Dv).
        log_decay: log γ of each head, N negative numbers. A sequence of floats is cached by
            value; a tensor (N,) is not cached and receives gradients. None means no decay
            (plain softmax attention).
        decomposed: attend along the width, then along the height of that result (eq. 6); the cost
            per token is O(H + W). Otherwise over all pairs of tokens (eq. 5), O(H·W).
        backend: a name in :data:`BACKENDS`; None chooses by device, dtype and form, and in eager
            calls also by size.
        bias: of :func:`map_tables` for this map, ``log_decay`` and backend, so that it is not built
            again in a traced graph; backends that do not use it leave it aside.

    Returns:
        (B, H, W, N, Dv), in the dtype of ``v``.

    Raises:
        ValueError: if a shape does not fit, or the named backend is unknown or cannot run.
    """
    _check(q, k, v, log_decay)
    if backend is None:
        backend = _choose(q, k, v, decomposed)
    elif backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    elif reason := BACKENDS[backend].why_not(q, k, v, decomposed=decomposed):
        raise ValueError(f"backend {backend!r} cannot run: {reason}")
    kernel = BACKENDS[backend]
    given = {} if bias is None or kernel.bias_dtype is None else {"bias": bias}
    return kernel.attend(q, k, v, log_decay, decomposed=decomposed, **given)


class MapTables(NamedTuple):
    """What attention on a map takes from the map's size, the same for all blocks of a stage.

    Attributes:
        rotation: :func:`rmt.ops.geometry.rotation`, (H, W, 1, D/2, 2).
        bias: for :func:`manhattan_attention`; None where the kernel builds its own.
    """

    rotation: Tensor
    bias: Biases | None


def map_tables(
    x: Tensor,
    angles: tuple[float, ...],
    log_decay: tuple[float, ...] | None,
    *,
    decomposed: bool,
    backend: str | None = None,
) -> MapTables:
    """Return the tables of the map ``x``, (B, H, W, C), for attention whose queries come from it.

    Args:
        x: the map.
        angles: of :func:`rmt.ops.geometry.rotation_angles`.
        log_decay: as for :func:`manhattan_attention`.
        decomposed: as for :func:`manhattan_attention`.
        backend: as for :func:`manhattan_attention`.
    """
    height, width, device = x.shape[1], x.shape[2], x.device
    # The meta device has no autocast, and says so by an error.
    known = torch.amp.is_autocast_available(device.type)
    autocast = known and torch.is_autocast_enabled(device.type)
    dtype = torch.get_autocast_dtype(device.type) if autocast else x.dtype
    turns = rotation(height, width, angles, device=device, dtype=dtype)
    if log_decay is None:
        return MapTables(turns, None)
    name = backend or _fastest(device, dtype, height, width, len(log_decay), decomposed)
    bias_dtype = BACKENDS[name].bias_dtype
    if bias_dtype is None:
        return MapTables(turns, None)
    table = {"device": device, "dtype": bias_dtype(dtype)}
    return MapTables(turns, biases(height, width, log_decay, decomposed, **table))


def explain(q: Tensor, k: Tensor, v: Tensor, *, decomposed: bool = True) -> dict[str, str]:
    """Return for each backend whether it can run on these tensors, and which one is chosen.

    Args:
        q: (B, H, W, N, D), as for :func:`manhattan_attention`.
        k: (B, H, W, N, D).
        v: (B, H, W, N, Dv).
        decomposed: as for :func:`manhattan_attention`.

    Returns:
        Name -> ``"chosen"``, ``"can run"``, or the reason why it cannot.

    Raises:
        ValueError: if a shape does not fit.
    """
    _check(q, k, v, None)
    chosen = _choose(q, k, v, decomposed)
    found = {}
    for name, kernel in BACKENDS.items():
        reason = kernel.why_not(q, k, v, decomposed=decomposed)
        found[name] = reason or ("chosen" if name == chosen else "can run")
    return found


def _choose(q: Tensor, k: Tensor, v: Tensor, decomposed: bool) -> str:
    if sdpa.why_not(q, k, v, decomposed=decomposed):
        return "plain"
    _, height, width, heads, _ = q.shape
    return _fastest(q.device, q.dtype, height, width, heads, decomposed)


def _fastest(
    device: torch.device, dtype: torch.dtype, height: int, width: int, heads: int, decomposed: bool
) -> str:
    """Choose a backend by properties that do not change in a traced graph.

    Measured with benchmarks/attention_backends.py: on the CPU the fused kernel is faster on whole
    maps and slower than plain products on short lines; on an accelerator it saves the memory
    traffic of the scores in both forms. Only eager calls look at sizes: they may be symbolic in a
    traced graph.
    """
    eager = not traced()
    if decomposed:
        fused = eager and max(height, width) >= LONG_LINE and dtype == wide(dtype)
        return "sdpa" if fused or device.type != "cpu" else "plain"
    bias_bytes = heads * (height * width) ** 2 * dtype.itemsize
    return "sliced" if eager and bias_bytes > LIMIT_ONE else "sdpa"


def _check(q: Tensor, k: Tensor, v: Tensor, log_decay: Sequence[float] | Tensor | None) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 5:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; expected 5 axes (B, H, W, N, D)"
            )
    if q.shape != k.shape:
        raise ValueError(f"q {tuple(q.shape)} and k {tuple(k.shape)} must have the same shape")
    if q.dtype != k.dtype:
        raise ValueError(f"q ({q.dtype}) and k ({k.dtype}) must have the same dtype")
    if v.shape[:4] != q.shape[:4]:
        raise ValueError(
            f"v {tuple(v.shape)} must share batch, height, width and heads with q {tuple(q.shape)}"
        )
    if log_decay is None:
        return
    if isinstance(log_decay, Tensor) and log_decay.ndim != 1:
        raise ValueError(f"log_decay has shape {tuple(log_decay.shape)}; expected (N,)")
    if len(log_decay) != q.shape[3]:
        raise ValueError(f"log_decay has {len(log_decay)} entries for {q.shape[3]} heads")
