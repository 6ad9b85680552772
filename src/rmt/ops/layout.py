"""The two ways a map is cut into lines of tokens, shared by the backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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
    """Run ``line`` on (B, H, N, W, D) rows, then on (B, W, N, H, D) columns of the result."""
    _, height, width, _, _ = q.shape
    table = {"device": device, "dtype": dtype}
    decay = None if log_decay is None else bias(width, log_decay, **table)
    rows = line(q.transpose(2, 3), k.transpose(2, 3), v.transpose(2, 3), decay)
    decay = None if log_decay is None else bias(height, log_decay, **table)
    q, k = q.permute(0, 2, 3, 1, 4), k.permute(0, 2, 3, 1, 4)
    columns = line(q, k, rows.permute(0, 3, 2, 1, 4), decay)
    return columns.permute(0, 3, 1, 2, 4)


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
