"""Full Manhattan attention on large maps, one head and a few rows of queries at a time.

The bias between all pairs of tokens grows with the square of the map: it takes 0.5 GB for 50 × 80
tokens and 8 heads in float32, and every block keeps it for the backward pass. Here each slice of
queries has its own part of the bias, which is computed when needed and again in the backward pass.
The softmax of one query does not depend on other queries, so values and gradients are the same.
Memory is linear in the number of tokens, at the cost of a second forward pass in training.

Measured for three blocks at 50 × 80 in training (benchmarks/attention_memory.py): 0.09 GB, with
``sdpa`` 1.6 GB, with ``plain`` 2.6 GB.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rmt.ops import sdpa
from rmt.ops.geometry import rows_bias, wide
from rmt.ops.tables import inside_transform

#: Elements in the bias of one slice: 8 MB in float32, which fits into a CPU's cache.
SLICE = 2**21


def why_not(q: Tensor, k: Tensor, v: Tensor, *, decomposed: bool) -> str | None:
    """Return why this backend cannot run on the tensors, or None."""
    if decomposed:
        return "it is for full attention only; the decomposed form needs no slices"
    return sdpa.why_not(q, k, v, decomposed=decomposed)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Sequence[float] | Tensor | None,
    *,
    decomposed: bool,
) -> Tensor:
    """Attend over a map; shapes as in :func:`rmt.ops.manhattan_attention`."""
    _, height, width, heads, _ = q.shape
    step = max(1, SLICE // (width * height * width))
    # Recomputation needs hooks on saved tensors, which torch.func does not have.
    recompute = torch.is_grad_enabled() and not inside_transform()
    # Gradients of k and v are sums over slices: they are added up in float32 or wider.
    k, v = k.to(wide(k.dtype)), v.to(wide(v.dtype))
    done = []
    for head in range(heads):
        q_head, k_head, v_head = (t[:, :, :, head : head + 1] for t in (q, k, v))
        decay = None if log_decay is None else log_decay[head : head + 1]
        slices = []
        for first in range(0, height, step):
            rows = range(first, min(first + step, height))
            inputs = (q_head[:, rows.start : rows.stop], k_head, v_head, decay, rows)
            if recompute:
                part = checkpoint(_rows, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                part = _rows(*inputs)
            slices.append(part)
        done.append(torch.cat(slices, dim=1))
    return torch.cat(done, dim=3)


def _rows(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Sequence[float] | Tensor | None, rows: range
) -> Tensor:
    _, height, width, _, _ = k.shape
    bias = None
    if log_decay is not None:
        bias = rows_bias(rows, height, width, log_decay, device=q.device, dtype=q.dtype)[None]
    q, k, v = (t.to(q.dtype).flatten(1, 2).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
    return out.transpose(1, 2).unflatten(1, (len(rows), width))
