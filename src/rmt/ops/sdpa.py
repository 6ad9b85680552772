"""Manhattan attention through PyTorch's fused ``scaled_dot_product_attention``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def why_not(q: Tensor, k: Tensor, v: Tensor, *, decomposed: bool) -> str | None:
    """Return why this backend cannot run on the tensors, or None."""
    if not q.dtype == k.dtype == v.dtype:
        return f"q, k and v must share one dtype, got {q.dtype}, {k.dtype}, {v.dtype}"
    return None


def line(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attend along lines; shapes as in :data:`rmt.ops.layout.Line`, ``bias`` in the dtype of q."""
    mask = None if bias is None else bias[None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
