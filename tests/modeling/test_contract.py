"""The contract of every registered model: values, gradients, graphs, precisions, copies.

What timm and the libraries on top of it ask of a model is in `test_timm_protocol.py`.
"""

import copy
import pickle

import pytest
import torch
from torch.export import Dim

import rmt
from forms import CLASSES, FORMS, assert_all_learn, build, image, sizes_of_maps

PARAMETERS = {
    "rmt_t": 14_334_216,
    "rmt_s": 26_967_240,
    "rmt_b": 54_154_896,
    "rmt_l": 95_464_864,
    "rmt_s_starred": 27_480_240,
    "rmt_b_starred": 54_667_896,
    "rmt_l_starred": 96_105_864,
}
# Dynamic sizes make tracing slow; these cover every line of code.
QUICK_GRAPHS = ("rmt_nano", "nano_patch_stem_merging", "rmt_deit_s")
GRAPHS = [
    form if form in QUICK_GRAPHS else pytest.param(form, marks=pytest.mark.slow) for form in FORMS
]


def parameters_of(form: str, **options) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in rmt.create_model(**FORMS[form] | options).parameters())


@pytest.mark.parametrize("form", PARAMETERS)
def test_exact_number_of_parameters(form: str) -> None:
    assert parameters_of(form) == PARAMETERS[form]


def test_the_wide_auxiliary_head_of_one_released_file() -> None:
    assert parameters_of("rmt_s_starred", aux_width=1024) == 27_992_240


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (33, 65), (1, 1), (1, 40), (70, 1), (57, 31)])
def test_any_size(model: rmt.RMT, size: tuple[int, int]) -> None:
    logits = model(image(*size))
    assert logits.shape == (2, CLASSES)
    assert logits.isfinite().all()
    last, maps = model.forward_intermediates(image(*size))
    assert [tuple(x.shape[1:]) for x in maps] == sizes_of_maps(model, *size)
    assert last.equal(maps[-1])


def test_every_parameter_gets_a_gradient(model: rmt.RMT) -> None:
    network = copy.deepcopy(model)
    network(image()).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_training_mode(model: rmt.RMT) -> None:
    """A starred model returns one tensor, as any trainer expects, until it is told otherwise."""
    network = copy.deepcopy(model).train()
    out = network(image())
    assert out.shape == (2, CLASSES)
    assert_all_learn(network, out.square().sum())
    network.set_token_label_training()
    if network.aux_head is not None:
        logits, dense = network(image())
        assert logits.shape == (2, CLASSES)
        assert dense.shape == (2, *sizes_of_maps(network, 64, 96)[-1][1:], CLASSES)
        assert_all_learn(network, logits.square().sum() + dense.square().sum())
    assert network.eval()(image()).shape == (2, CLASSES)


@pytest.mark.usefixtures("unchecked_annotations")  # a trace passes proxies
def test_torch_fx_traces_it(model: rmt.RMT) -> None:
    """The graph is for images of any size, in both modes, and the fused form's too."""
    traced = torch.fx.symbolic_trace(model)
    for size in ((64, 96), (33, 47)):
        x = torch.randn(2, 3, *size)
        assert traced(x).equal(model(x))
    fused = model.fuse()
    assert torch.fx.symbolic_trace(fused)(x).equal(fused(x))
    network = copy.deepcopy(model).train()
    traced = torch.fx.symbolic_trace(network)
    assert_all_learn(network, traced(image()).square().sum())


@torch.no_grad()
def test_starred_logits(model: rmt.RMT) -> None:
    if model.aux_head is None:
        assert not model.state_dict().keys() & {"aux_head.weight"}
        return
    x = image()
    features = model.forward_features(x)
    dense = model.dense_logits(features.permute(0, 2, 3, 1))
    expected = model.forward_head(features) + 0.5 * dense.flatten(1, 2).max(dim=1).values
    assert torch.allclose(model(x), expected, atol=1e-6)


def test_one_graph(model: rmt.RMT) -> None:
    """No graph break."""
    torch.compiler.reset()
    x = image(33, 65)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(x), model(x), atol=1e-5)


@pytest.mark.parametrize("form", GRAPHS)
def test_one_graph_for_all_sizes(form: str) -> None:
    torch.compiler.reset()
    model = build(form)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    with torch.no_grad():
        compiled(image(96, 160, batch=5))
        with torch.compiler.set_stance("fail_on_recompile"):
            for size in ((64, 96), (65, 131)):
                x = image(*size)
                assert torch.allclose(compiled(x), model(x), atol=1e-5)


@pytest.mark.parametrize("form", GRAPHS)
def test_export(form: str) -> None:
    """Batch, height and width are dynamic; torch needs a last map of more than one token."""
    model = build(form)
    smallest = model.variant.reductions[-1] + 1
    shape = {0: Dim("batch"), 2: Dim("height", min=smallest), 3: Dim("width", min=smallest)}
    with torch.no_grad():
        program = torch.export.export(model, (image(96, 160, batch=5),), dynamic_shapes=(shape,))
        for size in ((64, 96), (33, 65)):
            for batch in (1, 2):
                x = image(*size, batch=batch)
                assert torch.allclose(program.module()(x), model(x), atol=1e-5)


@pytest.mark.slow
def test_the_real_code_generator() -> None:
    torch.compiler.reset()
    model, x = build("rmt_nano"), image()
    compiled = torch.compile(model, fullgraph=True)
    results = []
    for network in (compiled, model):
        model.zero_grad()
        out = network(x)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max() + 1e-6


@torch.no_grad()
def test_mixed_precision(model: rmt.RMT) -> None:
    x = image()
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    assert (out.float() - expected).abs().max() <= 0.03 * expected.abs().max()
    assert torch.allclose(copy.deepcopy(model).double()(x.double()).float(), expected, atol=1e-4)
    half = copy.deepcopy(model).bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().max() <= 0.1 * expected.abs().max()


@torch.no_grad()
def test_channels_last(model: rmt.RMT) -> None:
    x = image()
    network = copy.deepcopy(model).to(memory_format=torch.channels_last)
    out = network(x.to(memory_format=torch.channels_last))
    assert torch.allclose(out, model(x), atol=1e-4)


@torch.no_grad()
def test_copies(model: rmt.RMT, form: str) -> None:
    x = image()
    expected = model(x)
    assert copy.deepcopy(model)(x).equal(expected)
    assert pickle.loads(pickle.dumps(model))(x).equal(expected)
    other = build(form)
    other.load_state_dict(model.state_dict())
    assert other(x).equal(expected)
    with torch.device("meta"):
        empty = build(form)
    assert all(p.is_meta for p in empty.parameters())
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(model.state_dict())
    assert filled(x).equal(expected)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert empty.eval()(x).equal(expected)


@torch.no_grad()
def test_functional_call(model: rmt.RMT) -> None:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["head.fc.bias"] += 1
    shifted = torch.func.functional_call(model, state, (image(batch=1),))
    torch.manual_seed(0)
    assert shifted.shape == (1, CLASSES)
    x = image()
    assert torch.allclose(torch.func.functional_call(model, state, (x,)), model(x) + 1, atol=1e-5)


@torch.no_grad()
def test_images_do_not_see_each_other(model: rmt.RMT) -> None:
    x = image()
    assert torch.allclose(model(x)[1:], model(x[1:]), atol=1e-5)
