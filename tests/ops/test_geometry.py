"""Decay rates, angles and distances: equal to the release's, with or without the cache."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golden_rule import GOLDEN
from rmt.ops.geometry import (
    line_bias,
    log_decay_rates,
    map_bias,
    rotate,
    rotation,
    rotation_angles,
    rows_bias,
)
from rmt.variants import VARIANTS

CPU = torch.device("cpu")
RELEASE = {"t": "rmt_t", "m": "rmt_b", "l": "rmt_l"}
BUFFERS = json.loads((GOLDEN / "relpos.json").read_text())


@pytest.mark.parametrize("key", BUFFERS)
def test_equals_the_release_bit_for_bit(key: str) -> None:
    letter, _, stage, _, what = key.split(".")
    variant, stage = VARIANTS[RELEASE[letter]], int(stage)
    if what == "decay":
        ours = log_decay_rates(variant.heads[stage], variant.decay_max[stage])
    else:
        angles = rotation_angles(variant.dims[stage] // variant.heads[stage])
        ours = tuple(np.repeat(angles, 2).tolist())
    assert ours == tuple(BUFFERS[key])


@given(st.integers(1, 64), st.floats(2.5, 12))
def test_decay_rates_are_negative_and_ever_slower(heads: int, decay_max: float) -> None:
    rates = log_decay_rates(heads, decay_max)
    assert len(rates) == heads
    assert rates[0] == pytest.approx(np.log(0.75), rel=1e-6)
    assert all(a < b < 0 for a, b in pairwise(rates))


@given(st.integers(1, 64).map(lambda n: 2 * n))
def test_angles_run_from_1_to_one_ten_thousandth(head_dim: int) -> None:
    angles = rotation_angles(head_dim)
    assert len(angles) == head_dim // 2
    assert angles[0] == 1
    assert angles[-1] == (np.float32(1e-4) if head_dim > 2 else 1)
    assert all(a > b for a, b in pairwise(angles))


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_a_bias_is_distance_times_rate(height: int, width: int, data: st.DataObject) -> None:
    rates = log_decay_rates(3, 6.0)
    table = {"device": CPU, "dtype": torch.float64}
    bias = map_bias(height, width, rates, **table)
    assert bias.shape == (3, height * width, height * width)
    i = data.draw(st.integers(0, height * width - 1))
    j = data.draw(st.integers(0, height * width - 1))
    distance = abs(i // width - j // width) + abs(i % width - j % width)
    assert bias[:, i, j].tolist() == [distance * rate for rate in rates]
    assert line_bias(width, rates, **table).equal(map_bias(1, width, rates, **table))
    assert line_bias(height, rates, **table).equal(map_bias(height, 1, rates, **table))
    first = data.draw(st.integers(0, height - 1))
    last = data.draw(st.integers(first + 1, height))
    part = rows_bias(range(first, last), height, width, rates, **table)
    assert part.equal(bias[:, first * width : last * width])


def turned(x: torch.Tensor, angles: tuple[float, ...]) -> torch.Tensor:
    """Rotate the tokens of a map (B, H, W, N, D)."""
    return rotate(x, rotation(x.shape[1], x.shape[2], angles, device=x.device, dtype=x.dtype))


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 8))
@settings(deadline=None)
def test_rotation_keeps_lengths_and_depends_on_differences(
    height: int, width: int, shift: int
) -> None:
    angles = rotation_angles(8)
    q, k = torch.randn(2, 8, dtype=torch.float64)
    rotated = turned(q.expand(1, height, width, 1, 8), angles)
    assert torch.allclose(rotated.norm(dim=-1), q.norm().expand(1, height, width, 1))
    # The product of a query and a key depends only on the difference of flattened positions.
    q_line, k_line = (turned(x.expand(1, 1, 32, 1, 8), angles).view(32, 8) for x in (q, k))
    products = q_line @ k_line.T
    at = min(shift, 8)
    assert torch.allclose(products.diagonal(at)[:1].expand(32 - at), products.diagonal(at))


class Rotation(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return turned(x, rotation_angles(x.shape[-1]))


def test_rotation_in_complex_and_in_real_numbers() -> None:
    angles = rotation_angles(8)
    x = torch.randn(2, 3, 5, 4, 8, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    eager = turned(x, angles)
    (gradient,) = torch.autograd.grad(eager, x, upstream)
    # A traced graph has real numbers only: deployment formats have no complex ones.
    exported = torch.export.export(Rotation(), (x,))
    assert "complex" not in str(exported.graph)
    traced = exported.module()
    assert torch.allclose(eager, traced(x), rtol=1e-12)
    assert torch.allclose(gradient, torch.autograd.grad(traced(x), x, upstream)[0], rtol=1e-12)
    for dtype, limit in ((torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)):
        rotated = turned(x.to(dtype), angles)
        assert rotated.dtype == dtype
        assert torch.allclose(rotated.double(), eager, atol=limit)
    # Complex numbers must be aligned in memory.
    odd = torch.cat([x, x], dim=-1)[..., 1:9]
    assert torch.allclose(turned(odd, angles), traced(odd), rtol=1e-12)


def test_position_is_the_flattened_index() -> None:
    angles = rotation_angles(16)
    table = {"device": CPU, "dtype": torch.float32}
    on_map, on_line = rotation(3, 5, angles, **table), rotation(1, 15, angles, **table)
    assert on_map.reshape(1, 15, 1, 8, 2).equal(on_line)


def test_half_precision_tables_are_rounded_once() -> None:
    rates, angles = log_decay_rates(4, 8.0), rotation_angles(32)
    for dtype in (torch.bfloat16, torch.float16):
        exact = line_bias(40, rates, device=CPU, dtype=torch.float32)
        assert line_bias(40, rates, device=CPU, dtype=dtype).equal(exact.to(dtype))
        # Rotations are computed in float32 whatever the dtype.
        exact = rotation(20, 30, angles, device=CPU, dtype=torch.float32)
        assert rotation(20, 30, angles, device=CPU, dtype=dtype) is exact


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: log_decay_rates(0, 6.0), ["num_heads is 0", "at least one"]),
        (lambda: log_decay_rates(4, -1.0), ["-1.0", "positive"]),
        (lambda: rotation_angles(7), ["7", "odd"]),
    ],
)
def test_bad_numbers_are_named(call, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r".*".join(words)):
        call()
