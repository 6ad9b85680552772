"""Maps as lines of tokens: a dense kernel is a function of lines, and this does the rest.

A line is one row or one column in the decomposed form (eq. 6), and all tokens of the map in the
full form (eq. 5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rmt.ops.geometry import line_bias, map_bias

#: Queries and keys (lines, N, L, D), values (lines, N, L, Dv) and a bias (N, L, L) or None ->
#: (lines, N, L, Dv): softmax(q kᵀ + bias) v. Always four axes: the fused kernels require them, and
#: a traced product does not have to split a symbolic size.
Line = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


#: The bias of the decomposed form, (N, W, W) along rows and (N, H, H) along columns, or of the full
#: one, (N, H·W, H·W).
Biases = tuple[Tensor, ...]


def biases(
    height: int,
    width: int,
    log_decay: Sequence[float] | Tensor,
    decomposed: bool,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Biases:
    """Return the biases of a map."""
    if not decomposed:
        return (map_bias(height, width, log_decay, device=device, dtype=dtype),)
    rows = line_bias(width, log_decay, device=device, dtype=dtype)
    return rows, line_bias(height, log_decay, device=device, dtype=dtype)


def attend_lines(
    line: Line, q: Tensor, k: Tensor, v: Tensor, bias: Biases | None, *, decomposed: bool
) -> Tensor:
    """Attend over a map with a function of lines; shapes as in :func:`rmt.ops.manhattan_attention`.

    Args:
        line: the kernel.
        q: (B, H, W, N, D), rotated.
        k: (B, H, W, N, D), rotated and scaled.
        v: (B, H, W, N, Dv).
        bias: of :func:`biases`, or None for plain softmax attention.
        decomposed: along rows, then along the columns of the result; otherwise over all tokens.

    Returns:
        (B, H, W, N, Dv).
    """
    batch, height, width, _, _ = q.shape
    if not decomposed:
        (whole,) = bias or (None,)
        q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))
        return line(q, k, v, whole).transpose(1, 2).unflatten(1, (height, width))
    along_rows, along_columns = bias or (None, None)
    rows = line(_rows(q), _rows(k), _rows(v), along_rows)
    v = rows.transpose(1, 2).unflatten(0, (batch, height))
    columns = line(_columns(q), _columns(k), _columns(v), along_columns)
    return columns.unflatten(0, (batch, width)).permute(0, 3, 1, 2, 4)


def _rows(x: Tensor) -> Tensor:
    """(B, H, W, N, D) -> (B·H, N, W, D)."""
    return x.flatten(0, 1).transpose(1, 2)


def _columns(x: Tensor) -> Tensor:
    """(B, H, W, N, D) -> (B·W, N, H, D)."""
    return x.permute(0, 2, 3, 1, 4).flatten(0, 1)
