"""The two ways a map is cut into lines of tokens, shared by the backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# (lines, N, L, D) queries, keys and values and a bias (N, L, L) -> (lines, N, L, D). Exactly four
# axes: the fused kernels take no other number, and a traced product splits no symbolic size.
Line = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def rows_then_columns(
    line: Line,
    bias: Callable,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Sequence[float] | Tensor | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Run ``line`` on the rows (B·H, N, W, D), then on the columns (B·W, N, H, D) of the result."""
    batch, height, width, _, _ = q.shape
    table = {"device": device, "dtype": dtype}
    decay = None if log_decay is None else bias(width, log_decay, **table)
    rows = line(_rows(q), _rows(k), _rows(v), decay)
    v = rows.transpose(1, 2).unflatten(0, (batch, height))
    decay = None if log_decay is None else bias(height, log_decay, **table)
    columns = line(_columns(q), _columns(k), _columns(v), decay)
    return columns.unflatten(0, (batch, width)).permute(0, 3, 1, 2, 4)


def full(
    line: Line,
    bias: Callable,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Sequence[float] | Tensor | None,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Run ``line`` once on all tokens: (B, N, H·W, D)."""
    _, height, width, _, _ = q.shape
    decay = None
    if log_decay is not None:
        decay = bias(height, width, log_decay, device=device, dtype=dtype)
    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))
    return line(q, k, v, decay).transpose(1, 2).unflatten(1, (height, width))


def _rows(x: Tensor) -> Tensor:
    return x.flatten(0, 1).transpose(1, 2)


def _columns(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1, 4).flatten(0, 1)
