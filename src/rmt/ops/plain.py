"""Manhattan attention through two batched matrix products and a softmax in float32."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rmt.ops.geometry import line_bias, map_bias, wide
from rmt.ops.layout import full, rows_then_columns


def why_not(q: Tensor, k: Tensor, v: Tensor, *, decomposed: bool) -> str | None:
    """Return None: plain products run on every device and dtype."""
    return None


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Sequence[float] | Tensor | None,
    *,
    decomposed: bool,
) -> Tensor:
    """Attend over a map; shapes as in :func:`rmt.ops.manhattan_attention`."""
    table = {"device": q.device, "dtype": wide(q.dtype)}
    if decomposed:
        return rows_then_columns(_line, line_bias, q, k, v, log_decay, **table)
    return full(_line, map_bias, q, k, v, log_decay, **table)


def _line(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    scores = (q @ k.mT).to(wide(q.dtype))
    if bias is not None:
        scores = scores + bias
    return scores.softmax(-1).to(v.dtype) @ v
