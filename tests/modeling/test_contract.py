"""The contract of every registered model; a new variant is tested automatically.

Widths are each variant's own, depths are cut to one block a stage: nothing here depends on more.
"""

import copy
import pickle

import pytest
import timm
import torch
from timm.models._features import FeatureGetterNet
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.export import Dim

import rmt
from rmt.variants import VARIANTS

# id -> arguments of create_model.
FORMS = {name: {"name": name} for name in rmt.list_models()}
FORMS |= {
    f"{name}_starred": {"name": name, "token_labels": True}
    for name, variant in VARIANTS.items()
    if variant.published and variant.published.top1_token_labels
}
# The ablations of Table 6 and every other switch, on the smallest body.
FORMS |= {
    f"nano_{what}": {"name": "rmt_nano"} | fields
    for what, fields in {
        "plain_attention": {"decay": False},
        "without_lce": {"lce": False},
        "without_cpe": {"cpe": False},
        "without_mlp_conv": {"mlp_conv": False},
        "patch_stem_merging": {"stem": "patch", "downsample": "merge"},
        "full_everywhere": {"full_attention": (True,) * 4},
        "layer_scale": {"layer_scale": (True,) * 4},
        "plain_head": {"head_hidden": 0},
        "starred_wide": {"token_labels": True, "aux_width": 256},
    }.items()
}
PARAMETERS = {
    "rmt_t": 14_334_216,
    "rmt_s": 26_967_240,
    "rmt_b": 54_154_896,
    "rmt_l": 95_464_864,
    "rmt_s_starred": 27_480_240,
    "rmt_b_starred": 54_667_896,
    "rmt_l_starred": 96_105_864,
}
CLASSES = 7
# Dynamic sizes make tracing slow; these cover every line of code.
QUICK_GRAPHS = ("rmt_nano", "nano_patch_stem_merging", "rmt_deit_s")
GRAPHS = [
    form if form in QUICK_GRAPHS else pytest.param(form, marks=pytest.mark.slow) for form in FORMS
]


def build(form: str, **options) -> rmt.RMT:
    """Make a shallow model of this form, with weights that let every branch matter."""
    depths = (1,) * len(VARIANTS[FORMS[form]["name"]].depths)
    options = {"num_classes": CLASSES, "depths": depths, "drop_path_rate": 0.0} | options
    model = rmt.create_model(**FORMS[form] | options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
            elif name.startswith(("head.fc", "aux_head")):
                parameter.normal_()
    return model.eval()


def parameters_of(form: str, **options) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in rmt.create_model(**FORMS[form] | options).parameters())


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(form: str) -> rmt.RMT:
    torch.manual_seed(1)
    return build(form)


def image(height: int = 64, width: int = 96, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, height, width)


def sizes_of_maps(model: rmt.RMT, height: int, width: int) -> list[tuple[int, int, int]]:
    """Return (C, h, w) of each stage: sizes round up."""
    info = zip(model.variant.dims, model.variant.reductions, strict=True)
    return [(dim, -(-height // stride), -(-width // stride)) for dim, stride in info]


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
    assert_all_learn(network, out)
    network.set_token_label_training()
    if network.aux_head is not None:
        logits, dense = network(image())
        assert logits.shape == (2, CLASSES)
        assert dense.shape == (2, *sizes_of_maps(network, 64, 96)[-1][1:], CLASSES)
        assert_all_learn(network, logits, dense)
    assert network.eval()(image()).shape == (2, CLASSES)


def assert_all_learn(network: rmt.RMT, *outs: torch.Tensor) -> None:
    network.zero_grad()
    sum(out.square().sum() for out in outs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


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
    assert_all_learn(network, torch.fx.symbolic_trace(network)(image()))


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


@torch.no_grad()
def test_intermediates(model: rmt.RMT) -> None:
    x, depth = image(), len(model.stages)
    last, maps = model.forward_intermediates(x)
    assert torch.allclose(last, model.forward_features(x))
    one = model.forward_intermediates(x, indices=[0], intermediates_only=True, stop_early=True)
    assert len(one) == 1
    assert one[0].equal(maps[0])
    early, _ = model.forward_intermediates(x, indices=[0], stop_early=True)
    assert early.equal(maps[0])
    tail = model.forward_intermediates(x, indices=1, intermediates_only=True)
    assert [t.equal(m) for t, m in zip(tail, maps[-1:], strict=True)] == [True]
    negative = model.forward_intermediates(x, indices=[-1], intermediates_only=True, norm=True)
    assert negative[0].equal(maps[-1])
    last, nhwc = model.forward_intermediates(x, output_fmt="NHWC")
    assert all(a.permute(0, 3, 1, 2).equal(b) for a, b in zip(nhwc, maps, strict=True))
    assert last.equal(maps[-1])
    assert len(maps) == depth


def test_an_unknown_axis_order_is_named(unchecked_annotations: None) -> None:
    with pytest.raises(ValueError, match="output_fmt is 'NLC'; choose 'NCHW' or 'NHWC'"):
        build("rmt_nano").forward_intermediates(image(), output_fmt="NLC")


@torch.no_grad()
def test_features_only(model: rmt.RMT, form: str) -> None:
    dims, strides = list(model.variant.dims), list(model.variant.reductions)
    x = image(50, 70)
    for indices in (None, (-1,), tuple(range(len(dims)))[-2:]):
        options = {} if indices is None else {"out_indices": indices}
        body = build(form, num_classes=0, features_only=True, **options)
        assert isinstance(body, FeatureGetterNet)
        wanted = range(len(dims)) if indices is None else indices
        assert body.feature_info.channels() == [dims[i] for i in wanted]
        assert body.feature_info.reduction() == [strides[i] for i in wanted]
        maps = body(x)
        expected = sizes_of_maps(model, 50, 70)
        assert [tuple(m.shape[1:]) for m in maps] == [expected[i] for i in wanted]


@torch.no_grad()
def test_pruning(model: rmt.RMT) -> None:
    x = image()
    maps = model.forward_intermediates(x, intermediates_only=True)
    network = copy.deepcopy(model)
    assert network.prune_intermediate_layers([0]) == [0]
    assert len(network.stages) == 1
    assert network.forward_intermediates(x, [0], intermediates_only=True)[0].equal(maps[0])
    assert network(x).equal(maps[0])
    assert not [key for key in network.state_dict() if key.startswith(("head", "aux_head"))]


@torch.no_grad()
def test_head(model: rmt.RMT) -> None:
    x = image()
    width = model.head_hidden_size
    height_width = sizes_of_maps(model, 64, 96)[-1][1:]
    features = model.forward_features(x)
    assert features.shape[1] == model.num_features == model.variant.dims[-1]
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, width)
    assert isinstance(model.get_classifier(), nn.Linear)
    assert torch.allclose(model.get_classifier()(pooled), model.forward_head(features), atol=1e-6)
    if model.aux_head is None:
        assert torch.allclose(model.forward_head(features), model(x), atol=1e-6)

    network = copy.deepcopy(model)
    network.reset_classifier(0)
    assert network.num_classes == 0
    assert isinstance(network.get_classifier(), nn.Identity)
    assert torch.allclose(network(x), pooled)
    network.reset_classifier(5)
    assert network(x).shape == (2, 5)
    network.reset_classifier(5, global_pool="")
    assert network(x).shape == (2, 5, *height_width)
    network.reset_classifier(0, global_pool="")
    assert torch.allclose(network(x).mean(dim=(2, 3)), pooled, atol=1e-5)
    with pytest.raises(ValueError, match="global_pool is 'max'"):
        network.reset_classifier(5, global_pool="max")


@torch.no_grad()
def test_options_of_construction(form: str) -> None:
    features = build(form, num_classes=0)
    assert features(image()).shape == (2, features.head_hidden_size)
    assert not [key for key in features.state_dict() if key.startswith(("head.fc", "aux_head"))]
    unpooled = build(form, num_classes=0, global_pool="")
    assert unpooled(image()).ndim == 4
    half = build(form, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert all(p.is_meta for p in build(form, device="meta").parameters())
    grey = build(form, in_chans=1)
    assert grey(image(channels=1)).shape == (2, CLASSES)
    rates = [
        getattr(block.drop_path, "drop_prob", 0.0)
        for stage in build(form, drop_path_rate=0.3).stages
        for block in stage.blocks
    ]
    assert rates == pytest.approx(torch.linspace(0, 0.3, len(rates)).tolist())


def test_layer_decay(model: rmt.RMT) -> None:
    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
    parameters = [p for group in groups for p in group["params"]]
    assert len(parameters) == len(list(model.parameters())) == len(set(parameters))
    scale = {p: group["lr_scale"] for group in groups for p in group["params"]}
    by_name = {name: scale[p] for name, p in model.named_parameters()}
    stem = {v for k, v in by_name.items() if k.startswith("stem")}
    blocks = [
        {v for k, v in by_name.items() if k.startswith(f"stages.{i}.blocks.")}
        for i in range(len(model.stages))
    ]
    head = {v for k, v in by_name.items() if k.startswith(("head", "aux_head"))}
    order = [stem, *blocks, head]
    assert all(len(scales) == 1 for scales in order)
    flat = [scales.pop() for scales in order]
    assert flat == sorted(flat)
    assert len(set(flat)) == len(flat)
    assert flat[-1] == 1
    decayed = {p for group in groups if group["weight_decay"] for p in group["params"]}
    assert all(p.ndim > 1 for p in decayed)


def test_gradient_checkpointing(form: str) -> None:
    """Equal to the last bit, stochastic depth and batch statistics included."""
    network = build(form, drop_path_rate=0.3).train()
    x, results = image(), []
    for enabled in (False, True):
        copied = copy.deepcopy(network)
        copied.set_grad_checkpointing(enabled)
        torch.manual_seed(3)
        out = copied(x)
        loss = out.square().sum() if isinstance(out, Tensor) else sum(o.square().sum() for o in out)
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in copied.parameters()), *copied.buffers()])
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


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


def test_timm_makes_the_same_model(form: str) -> None:
    options = {k: v for k, v in FORMS[form].items() if k != "name"}
    with torch.device("meta"):
        ours = rmt.create_model(**FORMS[form])
        theirs = timm.create_model(FORMS[form]["name"], **options)
    assert ours.variant == theirs.variant
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
