"""Manhattan attention as a function of tensors: one door to every kernel."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from rmt.ops import plain, reference, sdpa, sliced
from rmt.ops.geometry import wide
from rmt.ops.tables import LIMIT_ONE

__all__ = ["BACKENDS", "explain", "manhattan_attention"]

#: Each backend is a module with ``attend`` and ``why_not``.
BACKENDS: dict[str, ModuleType] = {
    "reference": reference,
    "plain": plain,
    "sdpa": sdpa,
    "sliced": sliced,
}
#: Tokens from which the fused kernel is the faster one for lines in full precision on the CPU.
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
    pairs of tokens. The scores are not scaled here: scale ``k`` by D^-½ before, as the module
    :class:`rmt.ManhattanAttention` does together with the rotation.

    Args:
        q: (B, H, W, N, D), already rotated.
        k: (B, H, W, N, D), already rotated (and scaled).
        v: (B, H, W, N, Dv).
        log_decay: log γ of each head, N negative numbers. A sequence of floats is cached by
            value; a tensor (N,) is used as it is and receives gradients. None switches the
            decay off (plain softmax attention).
        decomposed: along the width, then along the height of that result: linear in H·W for
            lines of constant length.
        backend: a name of :data:`BACKENDS`; None picks by static facts, and by size where the
            call is not traced.

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
    """Say of every backend whether it can run on these tensors, and which would be chosen.

    Raises:
        ValueError: as :func:`manhattan_attention`.
    """
    _check(q, k, v, None)
    chosen = _choose(q, k, v, decomposed)
    lines = {}
    for name, module in BACKENDS.items():
        reason = module.why_not(q, k, v, decomposed=decomposed)
        lines[name] = reason or ("chosen" if name == chosen else "can run")
    return lines


def _choose(q: Tensor, k: Tensor, v: Tensor, decomposed: bool) -> str:
    """Pick a backend from facts that do not change inside a traced graph.

    Measured with benchmarks/attention_backends.py: on the CPU the fused kernel wins on whole maps
    and loses to plain products on short lines; on an accelerator it saves the memory traffic of
    the scores in both. Only eager calls look at sizes, which a traced graph may leave open.
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
