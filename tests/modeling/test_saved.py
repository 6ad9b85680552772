"""Descriptions in files: every entry is checked, and none tells where it was made."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import rmt
from rmt.modeling.saved import Description, find_weights, read_safetensors, without_paths
from rmt.weights.load import load

GOOD = {
    "task": "segmentation",
    "rmt_version": "1",
    "config": {"architecture": "upernet", "num_classes": 2, "model_args": {"backbone": "rmt_nano"}},
    "info": {
        "label_names": ["a", "b"],
        "palette": [[0, 0, 0], [255, 0, 0]],
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
        "weights": "ema",
        "source": "x.pth",
        "recipe": {"seed": 1},
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the good description with another value at a place; None removes it."""
    out = copy.deepcopy(GOOD)
    at: Any = out
    *parents, last = path.split(".")
    for key in parents:
        at = at[key]
    at.pop(last) if value is None else at.update({last: value})
    return out


def test_a_good_one() -> None:
    found = Description.read(copy.deepcopy(GOOD), "x")
    assert (found.task, found.config, found.info) == (GOOD["task"], GOOD["config"], GOOD["info"])
    assert Description.read(found.as_dict(), "x") == found


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("task", None, r"has no entry 'task'"),
        ("task", 5, r"task is 5; expected text"),
        ("config", None, r"has no entry 'config'"),
        ("config", [], r"config is a list of 0; expected a mapping"),
        ("config.architecture", None, r"config has no entry 'architecture'"),
        ("config.architecture", ["upernet"], r"config\.architecture is a list of 1"),
        ("config.num_classes", "2", r"config\.num_classes is '2'; expected a whole number"),
        ("config.num_classes", 2.0, r"config\.num_classes is 2\.0; expected a whole number"),
        ("config.num_classes", True, r"config\.num_classes is True"),
        ("config.num_classes", -1, r"config\.num_classes is -1; expected a whole number from 0"),
        ("config.model_args", None, r"config has no entry 'model_args'"),
        ("config.model_args", "", r"config\.model_args is ''; expected a mapping"),
        ("config.pretrained_cfg", 3, r"config\.pretrained_cfg is 3; expected a mapping"),
        ("info", "none", r"info is 'none'; expected a mapping"),
        ("info.label_names", "ab", r"info\.label_names is 'ab'; expected a list"),
        ("info.label_names", ["a"], r"info\.label_names has 1 names for 2 classes"),
        ("info.label_names", ["a", 7], r"info\.label_names\.1 is 7; expected text"),
        ("info.label_names", ["a", None], r"info\.label_names\.1 is None; expected text"),
        ("info.palette", [[0, 0, 0], [0, 256, 0]], r"info\.palette\.1\.1 is 256; .* 0 to 255"),
        ("info.palette", [[0, 0, 0], [0, 0]], r"info\.palette\.1 is not a colour"),
        ("info.palette", [[0, 0, 0]], r"info\.palette has 1 colours for 2 classes"),
        ("info.recipe", [1], r"info\.recipe is a list of 1; expected a mapping"),
        ("info.weights", "best", r"info\.weights is 'best'; expected 'raw' or 'ema'"),
        ("info.source", 3, r"info\.source is 3; expected text"),
        ("info.pretrained_cfg", {"std": [0, 1, 1]}, r"std\.0 must be greater than 0"),
        ("info.pretrained_cfg", {"mean": [1, 2]}, r"has 2 channels in mean and 3 in std"),
        ("info.pretrained_cfg", {"mean": "abc"}, r"mean is 'abc'; expected a list"),
        ("config.pretrained_cfg", {"crop_pct": 1e-9}, r"crop_pct is 1e-09; expected 0\.1 to 1"),
        ("config.pretrained_cfg", {"input_size": [3, 10**5, 9]}, r"input_size\.1 is 100000"),
        ("config.pretrained_cfg", {"input_size": [224, 224]}, r"input_size has 2 entries"),
        ("config.pretrained_cfg", {"interpolation": "best"}, r"interpolation is 'best'; expected"),
    ],
)
def test_a_wrong_entry_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Description.read(changed(path, value), "x.safetensors")
    assert str(error.value).startswith("x.safetensors")
    assert "Write it again" in str(error.value)


RECIPE = {
    "task": "classification",
    "title": "imagenet/rmt_s as published",
    "published": {"source": "https://example.org/log"},
    "data": {"root": "/home/ann/secret/flowers/", "format": "folder"},
    "model": {"name": "rmt_nano", "checkpoint": "../secret/start.safetensors"},
    "token_labels": {"root": r"C:\Users\ann\maps", "weights": "~/secret/x.pth", "teacher": ""},
}


def test_paths_stay_at_home(tmp_path: Path) -> None:
    model = rmt.create_model("rmt_nano", 2)
    model.pretrained_cfg["file"] = "/home/ann/secret/rmt.safetensors"
    model.info = {"recipe": copy.deepcopy(RECIPE), "label_names": ["/m/01g317", "b"]}
    model.save_pretrained(tmp_path)
    rmt.save(model, tmp_path / "one.safetensors")
    for path in tmp_path.iterdir():
        written = path.read_bytes()
        assert not [word for word in (b"secret", b"ann", b"Users") if word in written], path
    found = load(tmp_path).info
    assert found["label_names"] == ["/m/01g317", "b"]  # names of classes are no paths
    assert found["recipe"]["data"] == {"root": "flowers", "format": "folder"}
    assert found["recipe"]["model"] == {"name": "rmt_nano", "checkpoint": "start.safetensors"}
    assert found["recipe"]["token_labels"]["root"] == "maps"
    assert found["recipe"]["title"] == RECIPE["title"]
    assert found["recipe"]["published"] == RECIPE["published"]
    assert model.info["recipe"] == RECIPE  # in memory nothing changes


@pytest.mark.parametrize("root", ["..", "a/..", "/", "."])
def test_a_path_without_a_name(root: str) -> None:
    about = {"config": {}, "info": {"recipe": {"data": {"root": root}}}}
    assert without_paths(about)["info"]["recipe"]["data"]["root"] == ""


def test_a_description_that_is_not_json_is_named(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    for text, message in (("{", "not JSON"), ("5", "is 5; expected"), ("[" * 9999, "too deep")):
        save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", {"rmt": text})
        with pytest.raises(ValueError, match=rf"x\.safetensors: 'rmt' in the metadata .*{message}"):
            read_safetensors(tmp_path / "x.safetensors")


def test_places_without_weights(tmp_path: Path) -> None:
    import os

    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors or pytorch_model"):
        find_weights(tmp_path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ValueError, match="neither a regular file nor a folder"):
        find_weights(tmp_path / "pipe.safetensors")
    with pytest.raises(FileNotFoundError, match=r"\\x1b\[2J"):
        find_weights(tmp_path / "\x1b[2J")


def test_the_configuration_of_a_folder_is_json(tmp_path: Path) -> None:
    rmt.create_segmenter("upernet", "rmt_nano", 2, channels=16).save_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    assert about.keys() == {"task", "rmt_version", "config", "info"}
