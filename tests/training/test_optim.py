"""Which weights decay: the three rules of recipes, with and without layer-wise rates."""

import pytest
import torch
from torch import nn

import rmt
from rmt.recipes import list_recipes
from rmt.recipes.schema import Optimizer
from rmt.training.fit import load_recipe
from rmt.training.optim import freeze, parameter_groups


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Return a network with layer norms, batch norms, biases and LayerScale."""
    with torch.device("meta"):
        return rmt.create_segmenter("upernet", "rmt_b", num_classes=3, channels=8)


def decaying(model: nn.Module, **fields: object) -> set[str]:
    """Return the names of the parameters whose weight decay is not 0; each is in one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, Optimizer(weight_decay=0.1, **fields))
    grouped = [(names[id(p)], group["weight_decay"]) for group in groups for p in group["params"]]
    assert sorted(name for name, _ in grouped) == sorted(names.values())
    assert {decay for _, decay in grouped} <= {0.0, 0.1}
    return {name for name, decay in grouped if decay}


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    with torch.device("meta"):
        return rmt.create_model("rmt_b")


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
def test_vectors_do_not_decay_but_layer_scale_does(
    classifier: nn.Module, layer_decay: float
) -> None:
    model = classifier
    found = decaying(model, layer_decay=layer_decay)
    assert found == {
        name for name, p in model.named_parameters() if p.ndim > 1 or name.endswith("gamma")
    }
    assert any(name.endswith("gamma") for name in found)


def test_norms_alone_do_not_decay(model: nn.Module) -> None:
    spared = set(dict(model.named_parameters())) - decaying(model, no_decay="norms")
    assert {
        "backbone.norms.0.weight",  # layer norms
        "backbone.norms.0.bias",
        "head.join.bn.weight",  # batch norms
        "head.join.bn.bias",
    } <= spared
    assert not {"head.classifier.conv.bias", "head.join.conv.weight"} & spared
    assert all("norm" in name or "bn" in name or ".stem." in name for name in spared)


def test_everything_decays(model: nn.Module) -> None:
    assert decaying(model, no_decay="nothing") == set(dict(model.named_parameters()))


def test_layer_decay_exempts_norms(classifier: nn.Module) -> None:
    expected = decaying(classifier, no_decay="norms")
    assert decaying(classifier, no_decay="norms", layer_decay=0.75) == expected


def test_layer_decay_is_for_classifiers(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"layer_decay is 0\.75, but only classifiers that order"):
        parameter_groups(model, Optimizer(layer_decay=0.75))


def test_frozen_parameters_are_in_no_group(model: nn.Module) -> None:
    frozen = next(model.parameters()).requires_grad_(False)
    groups = parameter_groups(model, Optimizer())
    frozen.requires_grad_(True)
    assert all(parameter is not frozen for group in groups for parameter in group["params"])


@pytest.mark.parametrize("name", list_recipes())
def test_published_recipes_exempt_what_the_release_exempts(name: str) -> None:
    own = dict.fromkeys(("small", "tiny_imagenet"), "bias_and_norm")
    expected = own | {"imagenet": "bias_and_norm", "coco": "norms"}
    group, row = name.split("/")
    if group == "ade20k":
        expected["ade20k"] = "norms" if row.startswith("upernet") else "nothing"
    assert load_recipe(name).optimizer.no_decay == expected[group]


def test_parts_are_named_whole() -> None:
    """Freezing block 1 does not freeze blocks 10 to 19."""
    model = nn.ModuleDict({"blocks": nn.ModuleList(nn.Linear(1, 1) for _ in range(12))})
    freeze(model, ["blocks.1"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"blocks.1.weight", "blocks.1.bias"}
