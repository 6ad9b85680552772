"""timm's protocol, on every registered model: what timm and the libraries on top of it rely on.

Values, gradients and graphs of the models themselves are in `test_contract.py`.
"""

import copy
import inspect
from fnmatch import fnmatch

import pytest
import timm
import torch
from timm.models._features import FeatureGetterNet
from timm.models._manipulate import group_parameters
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

import rmt
from forms import CLASSES, FORMS, assert_all_learn, build, image, sizes_of_maps


@torch.no_grad()
def test_intermediates(model: rmt.RMT) -> None:
    """Maps of the chosen stages, in any form of the choice, and the last map."""
    x, depth = image(), len(model.stages)
    last, maps = model.forward_intermediates(x)
    assert len(maps) == depth
    assert last.equal(maps[-1])
    assert torch.allclose(last, model.forward_features(x))
    for indices in ([0], [-1], [0, -1], (-1,), 1):
        chosen = (-1,) if indices == 1 else indices  # an int counts from the end
        wanted = [maps[i] for i in sorted({i % depth for i in chosen})]
        found = model.forward_intermediates(x, indices, norm=True, intermediates_only=True)
        assert_same(found, wanted, indices)
        whole, found = model.forward_intermediates(x, indices)
        assert_same([whole, *found], [last, *wanted], indices)
        early, found = model.forward_intermediates(x, indices, stop_early=True)
        assert_same([early, *found], [wanted[-1], *wanted], indices)


def assert_same(found: list[Tensor], wanted: list[Tensor], what: object) -> None:
    assert [a.equal(b) for a, b in zip(found, wanted, strict=True)] == [True] * len(wanted), what


@torch.no_grad()
def test_axis_order_of_the_maps(model: rmt.RMT) -> None:
    """It is that of the maps; the last map stays (B, C, H, W)."""
    x = image()
    last, maps = model.forward_intermediates(x)
    again, nhwc = model.forward_intermediates(x, output_fmt="NHWC")
    assert again.equal(last)
    assert_same([m.permute(0, 3, 1, 2) for m in nhwc], maps, "NHWC")


def test_a_stage_that_is_not_there_is_refused(model: rmt.RMT) -> None:
    depth = len(model.stages)
    for indices in ([depth], [-depth - 1], depth + 1):
        with pytest.raises(AssertionError, match=r"feature index|last-n"):  # timm's words
            model.forward_intermediates(image(), indices)


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
    """A pruned network is a whole one that ends at that stage, without a head."""
    x, dims = image(), model.variant.dims
    maps = model.forward_intermediates(x, intermediates_only=True)
    for i, expected in enumerate(maps):
        network = copy.deepcopy(model)
        assert network.prune_intermediate_layers([i], prune_norm=bool(i % 2)) == [i]
        assert len(network.stages) == i + 1
        assert_same(network.forward_intermediates(x, [i], intermediates_only=True), [expected], i)
        assert network.forward_features(x).equal(expected)
        assert network(x).equal(expected)
        assert not [key for key in network.state_dict() if key.startswith(("head", "aux_head"))]
        assert network.num_classes == 0
        assert network.num_features == network.head_hidden_size == dims[i]
        assert not any(module.training for module in network.modules())
    network = copy.deepcopy(model)
    assert network.prune_intermediate_layers(1, prune_head=False) == [len(maps) - 1]
    assert network(x).equal(model(x))


def test_a_pruned_network_trains(model: rmt.RMT) -> None:
    """Every parameter that is left takes part: DDP demands it."""
    for i in range(len(model.stages)):
        network = copy.deepcopy(model).train()
        network.prune_intermediate_layers([i])
        assert_all_learn(network, network(image(32, 48)).square().sum())


@torch.no_grad()
def test_a_pruned_network_gets_a_new_classifier(model: rmt.RMT) -> None:
    """It is linear, on the mean of the map."""
    network, x = copy.deepcopy(model), image()
    network.prune_intermediate_layers([0])
    assert isinstance(network.get_classifier(), nn.Identity)
    network.reset_classifier(0, "avg")
    pooled = network.forward_features(x).mean(dim=(2, 3))
    assert torch.allclose(network(x), pooled)
    network.reset_classifier(5)
    assert network(x).shape == (2, 5)
    assert torch.allclose(network.get_classifier()(pooled), network(x), atol=1e-6)
    assert torch.allclose(network.forward_head(network.forward_features(x), True), pooled)
    assert network.aux_head is None


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


@pytest.mark.parametrize("training", [False, True])
def test_a_new_classifier_is_like_the_rest(model: rmt.RMT, training: bool) -> None:
    """Of the model's device, type and mode; pooling stays, and so does what is frozen."""
    network = copy.deepcopy(model).to("meta", torch.float64).train(training).requires_grad_(False)
    network.reset_classifier(0)
    assert not [name for name, p in network.named_parameters() if p.requires_grad]
    network.reset_classifier(2)
    assert {(p.device.type, p.dtype) for p in network.parameters()} == {("meta", torch.float64)}
    assert {module.training for module in network.modules()} == {training}
    heads = [network.get_classifier(), *([network.aux_head] if network.aux_width else [])]
    assert {p for head in heads for p in head.parameters()} == {
        p for p in network.parameters() if p.requires_grad
    }
    assert inspect.signature(network.reset_classifier).parameters["global_pool"].default is None


@torch.no_grad()
def test_configuration(model: rmt.RMT) -> None:
    """Its layers are the model's, and the transforms the release's."""
    cfg, layers = model.default_cfg, dict(model.named_modules())
    assert cfg is model.pretrained_cfg
    assert cfg["input_size"] == (model.in_chans, 224, 224)
    assert not cfg["fixed_input_size"]
    assert isinstance(layers[cfg["first_conv"]], nn.Conv2d)
    names = [cfg["classifier"]] if isinstance(cfg["classifier"], str) else cfg["classifier"]
    heads = [model.get_classifier(), *([model.aux_head] if model.aux_width else [])]
    assert [layers[name] for name in names] == heads
    starred = cfg.get("tag") == "token_label_in1k"
    assert (cfg["crop_pct"], cfg["interpolation"]) == (0.96 if starred else 0.875, "bicubic")
    assert (cfg["mean"], cfg["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    features = copy.deepcopy(model).to("meta").forward_features(image(224, 224).to("meta"))
    assert tuple(features.shape[2:]) == cfg["pool_size"]


def test_an_unknown_option_is_an_unknown_argument(form: str) -> None:
    """Libraries try an option on any model, and do without it after a TypeError."""
    with pytest.raises(TypeError, match="unknown option 'img_size'"):
        build(form, img_size=64, device="meta")


@torch.no_grad()
def test_a_cast_after_use(model: rmt.RMT) -> None:
    """Nothing that a forward keeps is of the old type."""
    network, x = copy.deepcopy(model), image(32, 48)
    network(x)
    for dtype in (torch.bfloat16, torch.float32):
        network.to(dtype)
        assert network(x.to(dtype)).dtype == dtype
    maps = network.forward_intermediates(x, intermediates_only=True)
    assert {m.dtype for m in maps} == {torch.float32}


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
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert len(set(coarse.values())) == 2 + len(model.stages)
    known = [name for name, _ in model.named_parameters()]
    assert all(any(fnmatch(n, pattern) for n in known) for pattern in model.no_weight_decay())


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


def test_gradient_checkpointing_of_features(form: str) -> None:
    """timm's wrapper has no switch of its own; its model has."""
    body = build(form, num_classes=0, features_only=True).train()
    x, results = image(32, 48), []
    for enabled in (False, True):
        copied = copy.deepcopy(body)
        if enabled:
            copied.model.set_grad_checkpointing()
        maps = copied(x)
        sum(m.square().mean() for m in maps).backward()
        results.append([*maps, *(p.grad for p in copied.parameters())])
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


@torch.no_grad()
def test_gradient_checkpointing_may_stay_on(model: rmt.RMT) -> None:
    network, x = copy.deepcopy(model), image()
    network.set_grad_checkpointing()
    assert network.grad_checkpointing
    assert network(x).equal(model(x))
    maps = network.forward_intermediates(x, intermediates_only=True)
    assert_same(maps, model.forward_intermediates(x, intermediates_only=True), "maps")
    network.set_grad_checkpointing(False)
    assert not any(stage.grad_checkpointing for stage in network.stages)


def test_timm_makes_the_same_model(model: rmt.RMT, form: str) -> None:
    options = {k: v for k, v in FORMS[form].items() if k != "name"}
    options |= {"num_classes": CLASSES, "depths": model.variant.depths}
    with torch.device("meta"):
        theirs = timm.create_model(FORMS[form]["name"], **options)
    assert theirs.variant == model.variant
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
