"""Manhattan attention through PyTorch's fused ``scaled_dot_product_attention``."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from rmt.ops.geometry import line_bias, map_bias
from rmt.ops.layout import full, rows_then_columns


def why_not(q: Tensor, k: Tensor, v: Tensor, *, decomposed: bool) -> str | None:
    """Return why this backend cannot take the tensors, or None."""
    if not q.dtype == k.dtype == v.dtype:
        return f"q, k and v must share one dtype, got {q.dtype}, {k.dtype}, {v.dtype}"
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
    table = {"device": q.device, "dtype": q.dtype}  # the fused kernels take no other mask dtype
    if decomposed:
        return rows_then_columns(_line, line_bias, q, k, v, log_decay, **table)
    return full(_line, map_bias, q, k, v, log_decay, **table)


def _line(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    mask = None if bias is None else bias[None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
