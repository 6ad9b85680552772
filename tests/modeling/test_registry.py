"""The models as timm knows them: names, tags, configurations, errors."""

import pytest
import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import nn

import rmt
from rmt.modeling.rmt import OPTION_NAMES, RMTOptions
from rmt.variants import OWN_VARIANTS, PAPER_VARIANTS, VARIANTS, variant_overrides

TAGGED = [f"{name}.in1k" for name in PAPER_VARIANTS] + [
    f"{name}.token_label_in1k" for name in ("rmt_s", "rmt_b", "rmt_l")
]


def meta_model(name: str, **options) -> rmt.RMT:
    """Make a model of one block a stage: no configuration depends on the depth."""
    depths = (1,) * len(VARIANTS[name.split(".")[0]].depths)
    with torch.device("meta"):
        return timm.create_model(name, depths=depths, **options)


def test_lists() -> None:
    paper = ["rmt_t", "rmt_s", "rmt_b", "rmt_l", "rmt_deit_s", "rmt_swin_t", "rmt_swin_s"]
    assert list(PAPER_VARIANTS) == paper
    assert rmt.list_models() == [*paper, *OWN_VARIANTS]
    assert set(timm.list_models("rmt_*")) == set(rmt.list_models())
    assert all(timm.is_model(name) for name in rmt.list_models())


@pytest.mark.parametrize("name", [*TAGGED, *OWN_VARIANTS])
def test_configuration_names_what_the_model_has(name: str) -> None:
    model = meta_model(name)
    cfg = model.pretrained_cfg
    assert cfg["architecture"] == name.split(".")[0]
    assert cfg.get("tag", "") == name.partition(".")[2]
    modules = dict(model.named_modules())
    assert isinstance(modules[cfg["first_conv"]], nn.Conv2d)
    assert modules[cfg["first_conv"]].in_channels == cfg["input_size"][0] == 3
    heads = cfg["classifier"] if isinstance(cfg["classifier"], tuple) else (cfg["classifier"],)
    assert all(isinstance(modules[head], nn.Linear) for head in heads)
    assert all(modules[head].out_features == cfg["num_classes"] == 1000 for head in heads)
    last = model.forward_features(torch.empty(1, *cfg["input_size"], device="meta"))
    assert tuple(last.shape[2:]) == cfg["pool_size"]
    assert last.shape[1] == model.num_features
    assert cfg["paper_ids"] == "arXiv:2309.11523"


def test_transforms_of_the_release() -> None:
    config = resolve_model_data_config(meta_model("rmt_t"))
    assert config["mean"] == (0.485, 0.456, 0.406)
    assert config["std"] == (0.229, 0.224, 0.225)
    assert (config["interpolation"], config["crop_pct"]) == ("bicubic", 0.875)
    assert resolve_model_data_config(meta_model("rmt_s", token_labels=True))["crop_pct"] == 0.96
    assert create_transform(**config) is not None


@pytest.mark.parametrize("name", ["rmt_s", "rmt_b", "rmt_l"])
def test_the_tag_and_the_option_make_the_same_starred_model(name: str) -> None:
    by_tag = meta_model(f"{name}.token_label_in1k")
    depths = by_tag.variant.depths
    by_option = rmt.create_model(name, token_labels=True, depths=depths, device="meta")
    assert by_tag.aux_head is not None
    assert by_tag.state_dict().keys() == by_option.state_dict().keys()
    assert by_tag.pretrained_cfg == by_option.pretrained_cfg
    assert by_tag.pretrained_cfg["tag"] == "token_label_in1k"
    assert meta_model(name).aux_head is None


def test_a_variant_without_published_star_may_be_starred_too() -> None:
    model = rmt.create_model("rmt_nano", num_classes=3, token_labels=True)
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_variant_fields_are_options() -> None:
    model = rmt.create_model("rmt_nano", lce=False, depths=[1, 1, 1, 1], device="meta")
    assert variant_overrides(model.variant) == {"lce": False, "depths": (1, 1, 1, 1)}


def test_the_configuration_holds_every_option() -> None:
    options = {
        "in_chans": 1,
        "global_pool": "",
        "drop_rate": 0.1,
        "drop_path_rate": 0.2,
        "token_labels": True,
        "aux_width": 256,
    }
    assert tuple(options) == OPTION_NAMES
    model = rmt.create_model("rmt_nano", 5, lce=False, device="meta", **options)
    assert model.options == RMTOptions(**options)
    assert model.config["model_args"] == options | {"lce": False}
    again = rmt.RMT.from_config(model.config)
    assert (again.options, again.variant) == (model.options, model.variant)
    model.reset_classifier(3, global_pool="avg")
    assert model.config["model_args"] == options | {"lce": False, "global_pool": "avg"}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("rmt_x", {}, r"unknown model 'rmt_x'; did you mean 'rmt_\w'\?.*rmt_deit_s"),
        ("rmt_swin_tt", {}, "did you mean 'rmt_swin_t'"),
        ("rmt_s", {"drop_path": 0.1}, "unknown option 'drop_path' of rmt_s.*'drop_path_rate'"),
        ("rmt_s", {"full_atention": ()}, "unknown option 'full_atention'.*'full_attention'"),
        ("rmt_s", {"dims": (64, 128)}, "dims has 2 entries for 4 stages"),
        ("rmt_s", {"heads": (5, 4, 8, 16)}, "64 channels on 5 heads"),
        ("rmt_s", {"pretrained": True}, r"no weights of rmt_s are hosted.*rmt\.load"),
        ("rmt_s", {"output_stride": 8}, "output_stride"),
        ("rmt_s", {"global_pool": "max"}, "global_pool is 'max'"),
        ("rmt_s", {"token_labels": True, "aux_width": 7}, "aux_width is 7"),
        ("rmt_s", {"stem": "patches"}, "stem is 'patches'.*conv"),
        ("rmt_s", {"downsample": "pool"}, "downsample is 'pool'.*merge"),
    ],
)
def test_mistakes_are_named(
    name: str, options: dict, words: str, unchecked_annotations: None
) -> None:
    with pytest.raises(ValueError, match=f"(?s){words}"):
        rmt.create_model(name, **options)


def test_timm_itself_names_an_unknown_option() -> None:
    with pytest.raises(ValueError, match="unknown option 'lcee' of rmt_t; did you mean 'lce'"):
        timm.create_model("rmt_t", lcee=False)


def test_pretrained_takes_a_file_that_the_caller_names(tmp_path) -> None:
    ours = rmt.create_model("rmt_nano", num_classes=5)
    path = ours.save_pretrained(tmp_path) / "model.safetensors"
    overlay = {"file": str(path), "num_classes": 5}
    model = timm.create_model(
        "rmt_nano", pretrained=True, num_classes=5, pretrained_cfg_overlay=overlay
    )
    assert all(a.equal(b) for a, b in zip(ours.parameters(), model.parameters(), strict=True))
    finetuned = timm.create_model(
        "rmt_nano", pretrained=True, num_classes=3, in_chans=1, pretrained_cfg_overlay=overlay
    )
    assert finetuned.head.fc.out_features == 3
    assert finetuned.stem[0].weight.equal(ours.stem[0].weight.sum(1, keepdim=True))
    assert finetuned.head.proj.weight.equal(ours.head.proj.weight)


@pytest.mark.parametrize("options", [{"stem": "patch"}, {"token_labels": True}])
def test_timm_knows_first_and_last_layers_of_any_form(options: dict, tmp_path) -> None:
    folder = rmt.create_model("rmt_nano", 4, **options).save_pretrained(tmp_path)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, in_chans=1, num_classes=3)
    assert model.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 3)


def test_an_unknown_tag_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown weight tag 'in1' ?.*did you mean 'in1k'"):
        rmt.create_model("rmt_s.in1")
