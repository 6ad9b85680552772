"""Every kernel equals the definition, in values and in all gradients, on every kind of map."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import rmt
from rmt.ops import BACKENDS, explain, reference, sliced
from rmt.ops.geometry import log_decay_rates

SIZES = {
    "square": (6, 6),
    "oblong": (4, 9),
    "odd": (7, 5),
    "row": (1, 8),
    "column": (8, 1),
    "one": (1, 1),
}
HEADS, WIDTH, VALUE_WIDTH = 3, 8, 6
RATES = log_decay_rates(HEADS, 6.0)
# (backend, decomposed) of all that can run; a new backend is tested automatically.
KERNELS = [
    (name, decomposed)
    for name, kernel in BACKENDS.items()
    if name != "reference"
    for decomposed in (True, False)
    if kernel.why_not(*[torch.empty(1, 1, 1, HEADS, WIDTH)] * 3, decomposed=decomposed) is None
]


@pytest.fixture(autouse=True)
def thin_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the sliced backend cut even small maps, and not evenly."""
    monkeypatch.setattr(sliced, "SLICE", 4 * HEADS * 6 * 36)


def inputs(height: int, width: int, batch: int = 2, dtype=torch.float64) -> list[Tensor]:
    shapes = [(batch, height, width, HEADS, d) for d in (WIDTH, WIDTH, VALUE_WIDTH)]
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def run(qkv: list[Tensor], rates, decomposed: bool, backend: str) -> tuple[Tensor, list[Tensor]]:
    """Return the output and the gradient of every input that can have one."""
    leaves = [t.detach().clone().requires_grad_() for t in qkv]
    if isinstance(rates, Tensor):
        rates = rates.detach().clone().requires_grad_()
    out = rmt.manhattan_attention(*leaves, rates, decomposed, backend)
    weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).reshape(out.shape)
    (out.double() * weight.sin()).sum().backward()
    if isinstance(rates, Tensor):
        leaves.append(rates)
    return out.detach(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("rates", ["floats", "tensor", "none"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("backend", "decomposed"), KERNELS)
def test_equals_the_reference(backend: str, decomposed: bool, size: str, rates: str) -> None:
    qkv = inputs(*SIZES[size])
    given_rates = {"floats": RATES, "tensor": torch.tensor(RATES).double(), "none": None}[rates]
    out, gradients = run(qkv, given_rates, decomposed, backend)
    expected, expected_gradients = run(qkv, given_rates, decomposed, "reference")
    assert out.dtype == torch.float64
    assert torch.allclose(out, expected, rtol=1e-12, atol=1e-13)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-11, atol=1e-12)


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 3), st.sampled_from(KERNELS))
@settings(deadline=None, max_examples=60)
def test_equals_the_reference_on_any_map(height, width, batch, kernel) -> None:
    backend, decomposed = kernel
    qkv = inputs(height, width, batch)
    ours = rmt.manhattan_attention(*qkv, RATES, decomposed, backend)
    theirs = rmt.manhattan_attention(*qkv, RATES, decomposed, "reference")
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(14, 14), (5, 31)])
@pytest.mark.parametrize(("backend", "decomposed"), KERNELS)
def test_half_precision_is_as_good_as_the_references(
    backend: str, decomposed: bool, size: tuple[int, int], dtype: torch.dtype
) -> None:
    qkv = inputs(*size, dtype=dtype)
    exact, exact_gradients = run([t.double() for t in qkv], RATES, decomposed, "reference")
    bound, bound_gradients = run(qkv, RATES, decomposed, "reference")
    out, gradients = run(qkv, RATES, decomposed, backend)
    assert out.dtype == dtype
    for ours, reference_half, truth in zip(
        (out, *gradients), (bound, *bound_gradients), (exact, *exact_gradients), strict=True
    ):
        allowed = 2 * (reference_half.double() - truth).abs().max()
        assert (ours.double() - truth).abs().max() <= allowed


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("decomposed", [True, False])
def test_the_reference_is_the_papers_formula(decomposed: bool, renormalise: bool) -> None:
    """Token by token with Python's floats: eq. 4-6, and eq. 5 as printed (not renormalised)."""
    height, width = 3, 4
    q, k, v = inputs(height, width, batch=1)
    out = reference.attend(q, k, v, RATES, decomposed=decomposed, renormalise=renormalise)

    def attended(y: int, x: int, head: int, values: Tensor, seen: list[tuple[int, int]]) -> Tensor:
        scores = [math.exp(q[0, y, x, head] @ k[0, i, j, head]) for i, j in seen]
        gamma = math.exp(RATES[head])
        decay = [gamma ** (abs(y - i) + abs(x - j)) for i, j in seen]
        weights = [s * d for s, d in zip(scores, decay, strict=True)]
        total = sum(weights) if renormalise else sum(scores)
        parts = zip(weights, seen, strict=True)
        return sum(w / total * values[0, i, j, head] for w, (i, j) in parts)

    def everywhere(values: Tensor, seen) -> Tensor:
        result = torch.empty_like(values)
        for y in range(height):
            for x in range(width):
                for head in range(HEADS):
                    result[0, y, x, head] = attended(y, x, head, values, seen(y, x))
        return result

    if decomposed:
        rows = everywhere(v, lambda y, x: [(y, j) for j in range(width)])
        expected = everywhere(rows, lambda y, x: [(i, x) for i in range(height)])
    else:
        tokens = [(i, j) for i in range(height) for j in range(width)]
        expected = everywhere(v, lambda y, x: tokens)
    assert torch.allclose(out, expected, rtol=1e-12)


@given(st.integers(1, 6), st.integers(1, 6), st.booleans())
@settings(deadline=None)
def test_properties_of_the_definition(height: int, width: int, decomposed: bool) -> None:
    q, k, v = inputs(height, width)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return rmt.manhattan_attention(q, k, v, RATES, decomposed, "reference")

    out = attend(q, k, v)
    # Weights are positive and sum to one.
    assert torch.allclose(attend(q, k, torch.ones_like(v)), torch.ones_like(v))
    assert out.amax() <= v.amax() + 1e-12
    assert out.amin() >= v.amin() - 1e-12
    # Distances have no direction: a mirrored map gives the mirrored result.
    assert torch.allclose(attend(q.flip(1), k.flip(1), v.flip(1)).flip(1), out)
    assert torch.allclose(attend(q.flip(2), k.flip(2), v.flip(2)).flip(2), out)
    # Linear in the values; images and heads do not see each other.
    assert torch.allclose(attend(q, k, 2 * v - 1), 2 * out - 1)
    assert torch.allclose(attend(q[1:], k[1:], v[1:]), out[1:])
    if not decomposed:
        transposed = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        assert torch.allclose(transposed.transpose(1, 2), out)


def test_the_two_forms_agree_on_a_line() -> None:
    for size in ((1, 9), (9, 1)):
        qkv = inputs(*size)
        whole = rmt.manhattan_attention(*qkv, RATES, decomposed=False)
        assert torch.allclose(whole, rmt.manhattan_attention(*qkv, RATES, decomposed=True))


def test_fast_decay_sees_only_itself() -> None:
    q, k, v = inputs(5, 4)
    for decomposed in (True, False):
        out = rmt.manhattan_attention(q, k, v, [-1e4] * HEADS, decomposed)
        assert torch.allclose(out, v)


def test_slices_work_under_grad_transforms_and_autocast() -> None:
    q, k, v = (t.float() for t in inputs(6, 6))
    expected = run([q, k, v], RATES, False, "plain")[1][0]
    weight = torch.linspace(-1, 1, v.numel()).reshape(v.shape).sin()
    gradient = torch.func.grad(
        lambda q: (rmt.manhattan_attention(q, k, v, RATES, False, "sliced") * weight).sum()
    )(q)
    assert torch.allclose(gradient, expected, atol=1e-5)
    q.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = rmt.manhattan_attention(q, k, v, RATES, False, "sliced")
    out.float().square().sum().backward()
    assert q.grad.isfinite().all()


def test_automatic_choice() -> None:
    def chosen(height: int, width: int, **options) -> str:
        dtype = options.pop("dtype", torch.float32)
        q = torch.empty(1, height, width, 8, 32, dtype=dtype)
        return next(name for name, why in explain(q, q, q, **options).items() if why == "chosen")

    assert chosen(14, 14) == "plain"
    assert chosen(4, 64) == "sdpa"
    assert chosen(4, 64, dtype=torch.bfloat16) == "plain"
    assert chosen(14, 14, decomposed=False) == "sdpa"
    assert chosen(50, 80, decomposed=False) == "sliced"


def test_the_choice_falls_on_what_can_run() -> None:
    q = torch.zeros(1, 4, 4, 1, 8)
    v = torch.ones(1, 4, 4, 1, 8, dtype=torch.float64)
    why = explain(q, q, v, decomposed=False)
    assert why["plain"] == "chosen"
    assert "share one dtype" in why["sdpa"]
    assert torch.allclose(rmt.manhattan_attention(q, q, v, [-0.1], decomposed=False), v)


def test_a_named_backend_that_cannot_run_says_why() -> None:
    q = torch.zeros(1, 2, 2, 1, 4)
    with pytest.raises(ValueError, match="'sdpa' cannot run: q, k and v must share one dtype"):
        rmt.manhattan_attention(q, q, q.double(), [-0.1], backend="sdpa")
    with pytest.raises(ValueError, match=r"'sliced' cannot run: .* full attention"):
        rmt.manhattan_attention(q, q, q, [-0.1], backend="sliced")
    with pytest.raises(ValueError, match="unknown backend 'flash'; known: reference, plain"):
        rmt.manhattan_attention(q, q, q, [-0.1], backend="flash")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": (2, 4, 3, 8)}, ["q", "(2, 4, 3, 8)", "(B, H, W, N, D)"]),
        ({"v": (2, 4, 5)}, ["v", "(2, 4, 5)", "5 axes"]),
        ({"k": (2, 4, 5, 3, 6)}, ["k (2, 4, 5, 3, 6)", "same shape"]),
        ({"v": (2, 4, 6, 3, 8)}, ["v (2, 4, 6, 3, 8)", "batch, height, width and heads"]),
        ({"rates": [-0.1, -0.2]}, ["log_decay has 2 entries for 3 heads"]),
        ({"rates": torch.zeros(3, 1)}, ["log_decay has shape (3, 1)"]),
    ],
)
def test_shapes_that_do_not_fit_are_named(change: dict, words: list[str]) -> None:
    shapes = dict.fromkeys("qkv", (2, 4, 5, 3, 8)) | change
    rates = shapes.pop("rates", RATES)
    with pytest.raises(ValueError, match=".*".join(map(re.escape, words))):
        rmt.manhattan_attention(*[torch.zeros(s) for s in shapes.values()], rates)
