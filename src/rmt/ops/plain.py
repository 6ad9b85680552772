"""Manhattan attention as two batched matrix products and a softmax in float32 or wider."""

from __future__ import annotations

from torch import Tensor

from rmt.ops.geometry import wide


def line(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attend along lines; shapes as in :data:`rmt.ops.layout.Line`."""
    scores = (q @ k.transpose(-2, -1)).to(wide(q.dtype))
    if bias is not None:
        scores = scores + bias
    return scores.softmax(-1).to(v.dtype) @ v
