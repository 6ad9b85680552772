"""The function and the plug-in module as one graph, with dynamic batch, height and width."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import rmt
from rmt.ops import BACKENDS
from rmt.ops.geometry import log_decay_rates

RATES = log_decay_rates(2, 6.0)
# Batch, height, width; in the first all differ from each other and from heads and width: the
# compiler takes equal sizes of its first call for one and the same.
SIZES = ((3, 5, 6), (2, 9, 4), (5, 12, 12))
FORMS = [(name, decomposed) for name in (None, "plain", "sdpa") for decomposed in (True, False)]
OPEN = {0: Dim("batch", min=1), 1: Dim("height", min=1), 2: Dim("width", min=1)}


class Function(nn.Module):
    """`manhattan_attention` as something that can be exported."""

    def __init__(self, decomposed: bool, backend: str | None) -> None:
        super().__init__()
        self.decomposed, self.backend = decomposed, backend

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return rmt.manhattan_attention(q, k, v, RATES, self.decomposed, self.backend)


def tokens(size: tuple[int, int, int], dtype=torch.float64) -> list[Tensor]:
    return [torch.randn(*size, 2, 4, dtype=dtype).requires_grad_() for _ in range(3)]


def gradients(function, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(function(*inputs).square().sum(), inputs)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(("backend", "decomposed"), FORMS)
def test_compile(backend: str | None, decomposed: bool) -> None:
    function = Function(decomposed, backend)
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    gradients(compiled, tokens(SIZES[0]))
    with torch.compiler.set_stance("fail_on_recompile"):
        for size in SIZES:
            inputs = tokens(size)
            ours, theirs = gradients(compiled, inputs), gradients(function, inputs)
            assert all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.slow
def test_compile_with_the_real_code_generator() -> None:
    function = Function(True, None)
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for size in SIZES[:2]:
        inputs = tokens(size, torch.float32)
        ours, theirs = gradients(compiled, inputs), gradients(function, inputs)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_compile_between_eager_calls_leaves_the_cache_sound() -> None:
    function = Function(True, None)
    inputs = tokens(SIZES[0])
    before = gradients(function, inputs)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    during = gradients(compiled, inputs)
    after = gradients(function, inputs)
    for a, b, c in zip(before, during, after, strict=True):
        assert torch.allclose(a, b)
        assert a.equal(c)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("backend", "decomposed"), FORMS)
def test_export(backend: str | None, decomposed: bool, strict: bool) -> None:
    function = Function(decomposed, backend)
    shapes = {"q": OPEN, "k": OPEN, "v": OPEN}
    example = tuple(t.detach() for t in tokens(SIZES[0]))
    program = torch.export.export(function, example, dynamic_shapes=shapes, strict=strict)
    for size in (*SIZES, (1, 1, 7), (2, 1, 1)):
        inputs = [t.detach() for t in tokens(size)]
        assert torch.allclose(program.module()(*inputs), function(*inputs))


@pytest.fixture(scope="module", params=[True, False], ids=["decomposed", "full"])
def module(request: pytest.FixtureRequest) -> rmt.ManhattanAttention:
    return rmt.ManhattanAttention(8, 2, request.param).double()


def test_compile_module(module: rmt.ManhattanAttention) -> None:
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    compiled(torch.randn(*SIZES[0], 8, dtype=torch.float64)).sum().backward()
    with torch.compiler.set_stance("fail_on_recompile"):
        for size in SIZES:
            x = torch.randn(*size, 8, dtype=torch.float64)
            assert torch.allclose(compiled(x), module(x))


@pytest.mark.parametrize("strict", [True, False])
def test_export_module(module: rmt.ManhattanAttention, strict: bool) -> None:
    x = torch.randn(*SIZES[0], 8, dtype=torch.float64)
    program = torch.export.export(module, (x,), dynamic_shapes=(OPEN,), strict=strict)
    for size in (*SIZES, (1, 1, 7), (2, 1, 1)):
        x = torch.randn(*size, 8, dtype=torch.float64)
        assert torch.allclose(program.module()(x), module(x))


@torch.no_grad()
def test_module_in_half_precision_and_copied(module: rmt.ManhattanAttention) -> None:
    """A cast changes weights only: log γ, angles and distances stay as exact as they were."""
    x = torch.randn(2, 9, 7, 8)
    exact = copy.deepcopy(module).float()(x)
    for half in (torch.bfloat16, torch.float16):
        cast = copy.deepcopy(module).to(half)
        assert (cast.log_decay, cast.angles) == (module.log_decay, module.angles)
        assert torch.allclose(cast(x.to(half)).float(), exact, atol=0.02)
        back = cast.float()
        back.load_state_dict(module.state_dict())
        assert back(x).equal(exact)


def test_module_has_no_buffers_and_no_hidden_state(module: rmt.ManhattanAttention) -> None:
    assert not list(module.buffers())
    assert {key.split(".")[0] for key in module.state_dict()} == {"q", "k", "v", "lce", "proj"}


def test_module_on_the_meta_device_then_filled(module: rmt.ManhattanAttention) -> None:
    with torch.device("meta"):
        empty = rmt.ManhattanAttention(8, 2, module.decomposed)
    filled = empty.to_empty(device="cpu").double()
    filled.load_state_dict(module.state_dict())
    x = torch.randn(1, 5, 6, 8, dtype=torch.float64)
    assert filled(x).equal(module(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_module_with_a_named_backend(backend: str) -> None:
    decomposed = backend != "sliced"
    module = rmt.ManhattanAttention(8, 2, decomposed, backend=backend)
    plain = rmt.ManhattanAttention(8, 2, decomposed, backend="reference")
    plain.load_state_dict(module.state_dict())
    x = torch.randn(2, 5, 4, 8)
    assert torch.allclose(module(x), plain(x), atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 5, 8), (2, 5, 6, 9), (2, 8, 5, 6)])
def test_module_names_a_wrong_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected a map \(B, H, W, 8\), got \(2, "):
        rmt.ManhattanAttention(8, 2)(torch.zeros(shape))


def test_module_names_heads_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="10 channels on 3 heads"):
        rmt.ManhattanAttention(10, 3)
    with pytest.raises(ValueError, match=r"9 channels on 3 heads.*even"):
        rmt.ManhattanAttention(9, 3)
