"""Manhattan self-attention as the paper and the release define it (eq. 4-8).

All other backends are compared with this definition: literal, in any dtype, differentiable, never
optimised.

    full         O = softmax(Q Kᵀ + (|Δy| + |Δx|) · log γ) V
    decomposed   along the width first, row by row:         V' = softmax(Q Kᵀ + |Δx| · log γ) V
                 then along the height, column by column:   O  = softmax(Q Kᵀ + |Δy| · log γ) V'

Adding |Δ| · log γ before the softmax is the same as multiplying by D = γ^|Δ| after it and
normalising again; this is what the release computes. The paper prints eq. 5 without the second
normalisation: ``renormalise=False`` gives that form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rmt.ops.geometry import line_bias, map_bias, wide


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Sequence[float] | Tensor | None,
    *,
    decomposed: bool,
    renormalise: bool = True,
) -> Tensor:
    """Attend over a map; shapes as in :func:`rmt.ops.manhattan_attention`.

    Args:
        q: (B, H, W, N, D), rotated.
        k: (B, H, W, N, D), rotated and scaled.
        v: (B, H, W, N, Dv).
        log_decay: (N,) log γ, or None for plain softmax attention.
        decomposed: rows then columns (eq. 6) instead of all pairs.
        renormalise: False for the paper's printed eq. 5.

    Returns:
        (B, H, W, N, Dv).
    """
    _, height, width, _, _ = q.shape
    table = {"device": q.device, "dtype": wide(q.dtype)}
    if decomposed:
        bias = None if log_decay is None else line_bias(width, log_decay, **table)
        scores = torch.einsum("bhwnd,bhund->bhnwu", q, k)
        v = torch.einsum("bhnwu,bhune->bhwne", _weights(scores, bias, v, renormalise), v)
        bias = None if log_decay is None else line_bias(height, log_decay, **table)
        scores = torch.einsum("bhwnd,bgwnd->bwnhg", q, k)
        return torch.einsum("bwnhg,bgwne->bhwne", _weights(scores, bias, v, renormalise), v)
    bias = None if log_decay is None else map_bias(height, width, log_decay, **table)
    q, k, v = q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2)
    scores = torch.einsum("bind,bjnd->bnij", q, k)
    out = torch.einsum("bnij,bjne->bine", _weights(scores, bias, v, renormalise), v)
    return out.unflatten(1, (height, width))


def _weights(scores: Tensor, bias: Tensor | None, v: Tensor, renormalise: bool) -> Tensor:
    scores = scores.to(wide(scores.dtype))
    if bias is None:
        return scores.softmax(-1).to(v.dtype)
    if renormalise:
        return (scores + bias).softmax(-1).to(v.dtype)
    return (scores.softmax(-1) * bias.exp()).to(v.dtype)
