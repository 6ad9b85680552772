"""Positions of tokens: decay rates, Manhattan distances, and the rotation of queries and keys.

All tables depend only on the map's size, the device and the dtype. Eager calls share them
through a cache; a traced call (``torch.compile``, ``torch.export``) builds them in its graph,
so that sizes may stay symbolic. Tables are not buffers of a module, so ``.half()`` or an
initialisation on the meta device cannot damage them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rmt.ops.tables import cached, traced

# The release stores log γ in float32 as its authors' CPU rounded it. Two of its values are
# one float32 step away from the correctly rounded logarithm; parity to 1e-9 needs those.
_RELEASE_ROUNDING = {
    -0.28768208622932434: -0.28768205642700195,
    -0.2269798070192337: -0.2269798219203949,
}


@functools.lru_cache(maxsize=256)
def log_decay_rates(num_heads: int, decay_max: float, decay_min: float = 2.0) -> tuple[float, ...]:
    """Return log γ of each head (eq. 8): γ_i = 1 - 2^(-a - (b - a)·i/N), as float32 values.

    Args:
        num_heads: N.
        decay_max: b, the exponent that the last head approaches.
        decay_min: a, the exponent of the first head; 2 in every published model.

    Returns:
        N negative numbers, the fastest decay first.

    Raises:
        ValueError: if ``num_heads`` is not positive or an exponent is not positive.
    """
    if num_heads < 1:
        raise ValueError(f"num_heads is {num_heads}; attention needs at least one head")
    if decay_min <= 0 or decay_max <= 0:
        raise ValueError(
            f"decay exponents a={decay_min}, b={decay_max} must be positive: γ = 1 - 2^-a"
        )
    f32 = np.float32
    rates = []
    for i in range(num_heads):
        exponent = f32(-decay_min - float(f32((decay_max - decay_min) * i) / f32(num_heads)))
        gamma = f32(1) - f32(2.0 ** float(exponent))
        rate = float(f32(math.log(float(gamma))))
        rates.append(_RELEASE_ROUNDING.get(rate, rate))
    return tuple(rates)


@functools.lru_cache(maxsize=64)
def rotation_angles(head_dim: int) -> tuple[float, ...]:
    """Return the D/2 angles 1 / 10000^linspace(0, 1, D/2), in radians per position, float32 values.

    Both ends of the range are included, as in RetNet (arXiv 2307.08621) and in the release.

    Raises:
        ValueError: if ``head_dim`` is odd: channels are rotated in pairs.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim is {head_dim}, an odd number; channels are rotated in pairs")
    pairs = head_dim // 2
    f32 = np.float32
    step = float(f32(1) / f32(pairs - 1)) if pairs > 1 else 0.0
    # Counted from the nearer end, so that the last value is exactly 1.
    grid = [
        f32(step * i) if i < pairs // 2 or pairs == 1 else f32(1 - step * (pairs - 1 - i))
        for i in range(pairs)
    ]
    return tuple(float(f32(1) / f32(10000.0 ** float(t))) for t in grid)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate each pair of channels (2j, 2j+1) of a token by the angle of its position.

    Computed in float32 or wider, as a product of complex numbers, which takes one pass over the
    memory instead of several; the graph formats of deployment do not have them.

    Args:
        x: queries or keys (B, H, W, N, D).
        table: :func:`rotation` of this map.

    Returns:
        (B, H, W, N, D), in the dtype of ``x``.
    """
    pairs = x.to(table.dtype).unflatten(-1, (-1, 2))
    if _has_complex(pairs):
        turned = torch.view_as_complex(pairs) * torch.view_as_complex(table)
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)
    turned = _turned(pairs[..., 0], pairs[..., 1], table)
    return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)


def rotate_halves(x: Tensor, table: Tensor) -> Tensor:
    """Do what :func:`rotate` does to channels whose pairs are (j, j + D/2), in real numbers."""
    # Four axes at most: some engines split and join more of them by slow, general code.
    first, second = x.flatten(1, 2).chunk(2, dim=-1)
    turned = torch.cat(_turned(first, second, table.flatten(0, 1)), dim=-1)
    return turned.unflatten(1, (x.shape[1], x.shape[2])).to(x.dtype)


def rotation(
    height: int,
    width: int,
    angles: tuple[float, ...],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Return cos and sin, (H, W, 1, D/2, 2), of position y·W + x times :func:`rotation_angles`.

    The position is the index in the flattened map and so depends on the map's width: the
    release's weights were trained that way. In float32, or in float64 for that ``dtype``.
    """
    return cached(_build_rotation, height, width, angles, device, wide(dtype))


def _turned(real: Tensor, imaginary: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = table.unbind(-1)
    return real * cos - imaginary * sin, imaginary * cos + real * sin


def line_bias(
    length: int, log_decay: Sequence[float] | Tensor, *, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return |i - j| · log γ along one axis: (N, L, L)."""
    return cached(_build_line_bias, length, _hashable(log_decay), device, dtype)


def map_bias(
    height: int,
    width: int,
    log_decay: Sequence[float] | Tensor,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Return (|Δy| + |Δx|) · log γ between all tokens of a map: (N, H·W, H·W)."""
    key = (0, height, height, width, _hashable(log_decay), device, dtype)
    return cached(_build_rows_bias, *key)


def rows_bias(
    rows: range,
    height: int,
    width: int,
    log_decay: Sequence[float] | Tensor,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Return the part of :func:`map_bias` that belongs to some rows of queries.

    It is never cached.

    Returns:
        (N, len(rows)·W, H·W).
    """
    return _build_rows_bias(rows.start, rows.stop, height, width, log_decay, device, dtype)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which tables and softmax are computed: float64 for it, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _has_complex(pairs: Tensor) -> bool:
    """Return whether (..., 2) can be viewed as complex numbers, which must be aligned."""
    if traced() or pairs.device.type not in ("cpu", "cuda"):
        return False
    *outer, inner = pairs.stride()
    return inner == 1 and not pairs.storage_offset() % 2 and not any(s % 2 for s in outer)


def _hashable(log_decay: Sequence[float] | Tensor) -> tuple[float, ...] | Tensor:
    return log_decay if isinstance(log_decay, Tensor) else tuple(log_decay)


def _build_rotation(height, width, angles, device, dtype):
    position = torch.arange(height * width, device=device, dtype=dtype)
    phase = torch.outer(position, torch.tensor(angles, device=device, dtype=dtype))
    return torch.stack((phase.cos(), phase.sin()), dim=-1).reshape(height, width, 1, -1, 2)


def _build_line_bias(length, log_decay, device, dtype):
    at = torch.arange(length, device=device)
    return _scaled((at[:, None] - at).abs(), log_decay, dtype)


def _build_rows_bias(first, last, height, width, log_decay, device, dtype):
    table = {"device": device, "dtype": wide(dtype)}
    rows = line_bias(height, log_decay, **table)[:, first:last]
    columns = line_bias(width, log_decay, **table)
    # The sum of two small tables is cheaper than one product for each pair of tokens.
    bias = rows[:, :, None, :, None] + columns[:, None, :, None, :]
    return bias.flatten(3).flatten(1, 2).to(dtype)


def _scaled(distance: Tensor, log_decay: tuple[float, ...] | Tensor, dtype: torch.dtype) -> Tensor:
    # Distances stay integers until this one product, so float64 parity is exact.
    if isinstance(log_decay, Tensor):
        rate = log_decay.to(distance.device, wide(dtype))
    else:
        rate = torch.tensor(log_decay, device=distance.device, dtype=wide(dtype))
    return (distance * rate[:, None, None]).to(dtype)
