"""The cache of tables: what it keeps, what it must never keep, and how much."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import rmt
from rmt.ops import tables
from rmt.ops.geometry import line_bias, log_decay_rates, map_bias, rotation, rotation_angles

RATES = log_decay_rates(2, 6.0)
ANGLES = rotation_angles(4)
TABLE = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture(autouse=True)
def empty_cache():
    tables.clear()
    yield
    tables.clear()


def attend(x: Tensor, backend: str | None = None) -> Tensor:
    """Use every kind of table: x is (B, 3, 4, 2, 4)."""
    table = rotation(3, 4, ANGLES, device=x.device, dtype=x.dtype)
    x = x * table[..., 0].repeat(1, 1, 1, 2)
    rows = rmt.manhattan_attention(x, x, x, RATES, backend=backend)
    return rows + rmt.manhattan_attention(x, x, x, RATES, decomposed=False, backend=backend)


def image() -> Tensor:
    return torch.randn(1, 3, 4, 2, 4)


def assert_all_plain() -> None:
    for table in tables._tables.values():
        assert type(table) is Tensor
        assert not table.is_inference()
        assert not torch._C._functorch.is_functorch_wrapped_tensor(table)


def test_equal_calls_share_a_table() -> None:
    assert line_bias(5, RATES, **TABLE) is line_bias(5, list(RATES), **TABLE)
    assert rotation(3, 4, ANGLES, **TABLE) is rotation(3, 4, ANGLES, **TABLE)
    assert line_bias(5, RATES, **TABLE) is not line_bias(6, RATES, **TABLE)
    double = line_bias(5, RATES, device=TABLE["device"], dtype=torch.float64)
    assert double.dtype == torch.float64
    assert line_bias(5, RATES, device=torch.device("meta"), dtype=torch.float32).is_meta


def test_tensors_of_rates_are_never_kept() -> None:
    rates = torch.tensor(RATES, requires_grad=True)
    assert line_bias(5, rates, **TABLE) is not line_bias(5, rates, **TABLE)
    assert not tables._tables


def test_inference_mode_then_training() -> None:
    x = image()
    with torch.inference_mode():
        expected = attend(x)
    assert_all_plain()
    x.requires_grad_()
    out = attend(x)
    out.sum().backward()
    assert torch.allclose(out, expected)
    assert x.grad.abs().sum() > 0


def test_fake_tensors_before_and_after_real_ones() -> None:
    for _ in range(2):  # with a cold cache, then with a warm one
        with FakeTensorMode():
            assert attend(image()).shape == (1, 3, 4, 2, 4)
        assert_all_plain()
        attend(image())
        assert tables._tables


@pytest.mark.parametrize("mode", ["real", "fake"])
def test_tracing_to_a_graph(mode: str) -> None:
    x = image()
    for _ in range(2):
        graph = make_fx(lambda x: attend(x), tracing_mode=mode)(x)
        assert torch.allclose(graph(x), attend(x))
        assert_all_plain()


def test_function_transforms() -> None:
    x = image()

    def plain(x: Tensor) -> Tensor:  # torch has no such rules for its fused CPU kernel
        return attend(x, "plain")

    for _ in range(2):
        gradient = torch.func.grad(lambda x: plain(x).square().sum())(x)
        leaf = x.clone().requires_grad_()
        plain(leaf).square().sum().backward()
        assert torch.allclose(gradient, leaf.grad, atol=1e-6)
        _, tangent = torch.func.jvp(plain, (x,), (torch.ones_like(x),))
        assert tangent.shape == x.shape
        many = torch.stack([x, 2 * x])
        assert torch.allclose(torch.vmap(plain)(many)[1], plain(2 * x), atol=1e-6)
        assert_all_plain()


def test_meta_tensors_need_no_memory() -> None:
    x = torch.empty(1, 300, 400, 2, 4, device="meta")
    assert rmt.manhattan_attention(x, x, x, RATES, decomposed=False).shape == x.shape


def test_an_autocast_region_gets_the_same_tables() -> None:
    expected = line_bias(7, RATES, **TABLE), rotation(3, 5, ANGLES, **TABLE)
    tables.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = line_bias(7, RATES, **TABLE), rotation(3, 5, ANGLES, **TABLE)
    assert all(a.equal(b) for a, b in zip(ours, expected, strict=True))


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LIMIT_BYTES", 10_000)
    monkeypatch.setattr(tables, "LIMIT_ONE", 5_000)
    first = line_bias(10, RATES, **TABLE)  # 800 bytes
    for length in range(11, 25):
        line_bias(length, RATES, **TABLE)
        assert line_bias(10, RATES, **TABLE) is first  # used again and again: stays
        assert sum(kept.nbytes for kept in tables._tables.values()) <= 10_000
    assert len(tables._tables) < 15
    large = map_bias(5, 6, RATES, **TABLE)  # 7,200 bytes
    assert large is not map_bias(5, 6, RATES, **TABLE)


def test_threads_may_share_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "LIMIT_BYTES", 3_000)

    def work(_: int) -> None:
        for i in range(300):
            assert line_bias(i % 9 + 1, RATES, **TABLE).shape == (2, i % 9 + 1, i % 9 + 1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))  # raises what a thread raised
