"""Manhattan attention as two batched matrix products and a softmax in float32 or wider."""

from __future__ import annotations

from torch import Tensor

from rmt.ops.geometry import wide
from rmt.ops.tables import traced

#: Lines up to which softmax is faster over the columns of transposed scores, in tokens: over rows,
#: PyTorch's CPU kernel takes longer to start with a row than to compute it.
SHORT_LINE = 16


def line(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attend along lines; shapes as in :data:`rmt.ops.layout.Line`."""
    # Only eager calls look at sizes: they may be symbolic in a traced graph.
    if q.device.type == "cpu" and not traced() and q.shape[2] <= SHORT_LINE:
        return _weights(k, q, bias, -2).to(v.dtype).transpose(-2, -1) @ v
    return _weights(q, k, bias, -1).to(v.dtype) @ v


def _weights(queries: Tensor, keys: Tensor, bias: Tensor | None, dim: int) -> Tensor:
    scores = (queries @ keys.transpose(-2, -1)).to(wide(queries.dtype))
    if bias is not None:
        scores = scores + bias  # symmetric, as distances are
    return scores.softmax(dim)
