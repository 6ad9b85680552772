"""Manhattan attention as a function of tensors, with a choice of kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rmt.ops import plain, reference, sdpa, sliced
from rmt.ops.geometry import wide
from rmt.ops.layout import Line, attend_lines
from rmt.ops.tables import LIMIT_ONE

__all__ = ["BACKENDS", "Backend", "explain", "manhattan_attention"]


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
    """

    attend: Callable[..., Tensor]
    why_not: Callable[..., str | None] = _runs_always


def _dense(
    line: Line, *, wide_bias: bool, why_not: Callable[..., str | None] = _runs_always
) -> Backend:
    """Return the backend of a kernel that is one function of lines.

    Args:
        line: the kernel.
        wide_bias: the bias is in float32 or wider; otherwise in the dtype of the queries.
        why_not: as in :class:`Backend`.
    """

    def attend(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Sequence[float] | Tensor | None,
        *,
        decomposed: bool,
    ) -> Tensor:
        dtype = wide(q.dtype) if wide_bias else q.dtype
        return attend_lines(line, q, k, v, log_decay, decomposed=decomposed, bias_dtype=dtype)

    return Backend(attend, why_not)


#: Name -> kernel. The dense ones are functions of lines; the two others take the map.
BACKENDS: dict[str, Backend] = {
    "reference": Backend(reference.attend),
    "plain": _dense(plain.line, wide_bias=True),
    "sdpa": _dense(sdpa.line, wide_bias=False, why_not=sdpa.why_not),
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
    return BACKENDS[backend].attend(q, k, v, log_decay, decomposed=decomposed)


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
    """Choose a backend by properties that do not change in a traced graph.

    Measured with benchmarks/attention_backends.py: on the CPU the fused kernel is faster on whole
    maps and slower than plain products on short lines; on an accelerator it saves the memory
    traffic of the scores in both forms. Only eager calls look at sizes: they may be symbolic in a
    traced graph.
    """
    if sdpa.why_not(q, k, v, decomposed=decomposed):
        return "plain"
    eager = not torch.compiler.is_compiling()
    _, height, width, heads, _ = q.shape
    if decomposed:
        fused = eager and max(height, width) >= LONG_LINE and q.dtype == wide(q.dtype)
        return "sdpa" if fused or q.device.type != "cpu" else "plain"
    bias_bytes = heads * (height * width) ** 2 * q.element_size()
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
