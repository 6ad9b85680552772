"""The weights in this package: found by name, whole, described, and read only when asked for."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_model_data_config

import rmt
from rmt.files import digest_of_file
from rmt.modeling.fuse import fuse
from rmt.modeling.registry import SHIPPED_DIGESTS
from rmt.modeling.saved import SHIPPED, find_weights, read_safetensors

NAME = "rmt_nano.tiny_imagenet"
FILE = SHIPPED / f"{NAME}.safetensors"


@pytest.mark.parametrize("name", SHIPPED_DIGESTS)
def test_the_file_is_the_one_that_is_listed(name: str) -> None:
    path = find_weights(name)
    assert digest_of_file(path) == SHIPPED_DIGESTS[name]
    assert path.stat().st_size < 3e6
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert SHIPPED_DIGESTS[name] in card


def test_all_files_are_listed() -> None:
    assert {path.stem for path in SHIPPED.glob("*.safetensors")} == set(SHIPPED_DIGESTS)


def test_every_door_leads_to_the_same_model() -> None:
    tensors, description = read_safetensors(FILE)
    models = [
        rmt.create_model("rmt_nano", pretrained=True),
        timm.create_model("rmt_nano", pretrained=True),
        timm.create_model(NAME, pretrained=True),
        rmt.load(NAME),
        rmt.load(FILE),
    ]
    for model in models:
        assert model.num_classes == 200
        state = model.state_dict()
        assert state.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert state[key].dtype in (torch.float32, torch.int64)
            assert torch.equal(state[key], tensor.to(state[key])), key
        assert model.info == description.info
        config = resolve_model_data_config(model)
        assert tuple(config["input_size"]) == (3, 64, 64)
        assert (config["crop_pct"], config["interpolation"]) == (1.0, "bilinear")
        assert tuple(config["mean"]) == (0.485, 0.456, 0.406)
        assert tuple(config["std"]) == (0.229, 0.224, 0.225)
        assert model.pretrained_cfg["license"] == "other"
    assert models[0].info["label_names"][0] == "n01443537 goldfish"


def test_other_classes_and_channels(tmp_path: Path) -> None:
    ours = rmt.load(NAME)
    model = rmt.create_model("rmt_nano", 5, in_chans=1, pretrained=True)
    assert model.eval()(torch.randn(1, 1, 64, 64)).shape == (1, 5)
    assert "label_names" not in model.info
    summed = ours.stem[0].weight.sum(1, keepdim=True)
    torch.testing.assert_close(model.stem[0].weight, summed, rtol=2e-3, atol=2e-3)  # half precision
    assert torch.equal(model.head.proj.weight, ours.head.proj.weight)
    again = timm.create_model(f"local-dir:{model.save_pretrained(tmp_path)}", pretrained=True)
    assert torch.equal(again.head.fc.weight, model.head.fc.weight)
    maps = timm.create_model(NAME, pretrained=True, features_only=True)(torch.randn(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == [32, 64, 96, 128]


def test_without_the_weights_nothing_is_of_them() -> None:
    for model in (rmt.create_model("rmt_nano"), timm.create_model("rmt_nano")):
        assert model.num_classes == 1000
        assert model.pretrained_cfg["input_size"] == (3, 224, 224)
        assert "file" not in model.pretrained_cfg
        assert model.info == {}


def test_plain_and_fused_agree() -> None:
    model = rmt.load(NAME)
    images = torch.randn(4, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(fuse(model)(images), model(images), rtol=1e-4, atol=1e-4)


def test_a_name_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"'rmt_nano\.tiny'.*in this package: rmt_nano\.t"):
        rmt.load("rmt_nano.tiny")


def test_import_does_not_read_them() -> None:
    script = f"""
import sys
seen = []
sys.addaudithook(lambda event, args: seen.append(str(args[0])) if event == "open" else None)
import rmt
rmt.create_model("rmt_nano")
assert not [name for name in seen if "shipped" in name], seen
assert seen
rmt.create_model({NAME!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True)
