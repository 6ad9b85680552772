"""A release file of a segmenter is recognised, read strictly, and keeps its class names."""

import json

import pytest
import torch
from torch import Tensor

import rmt.segmentation
from golden_rule import GOLDEN, golden_state, release_keys
from rmt.modeling.registry import create_model
from rmt.segmentation import config_of_release, create_segmenter
from rmt.weights.load import load, load_body


def layout(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return {key: torch.empty(shape) for key, shape in release_keys(name).items()}


@pytest.mark.parametrize(
    ("name", "head", "backbone", "width"),
    [
        ("semfpn_t", "semantic_fpn", "rmt_t", 128),
        ("semfpn_s", "semantic_fpn", "rmt_s", 128),
        ("semfpn_m", "semantic_fpn", "rmt_b", 128),
        ("semfpn_l", "semantic_fpn", "rmt_l", 128),
        ("upernet_s", "upernet", "rmt_s", 512),
        ("upernet_m", "upernet", "rmt_b", 512),
        ("upernet_l", "upernet", "rmt_l", 512),
    ],
)
def test_recognised(name: str, head: str, backbone: str, width: int) -> None:
    config = config_of_release(layout(name), {})
    assert config is not None
    assert config["architecture"] == head
    assert config["num_classes"] == 150
    assert config["model_args"] == {"backbone": backbone, "in_chans": 3, "channels": width}


def test_other_files_are_left_to_others() -> None:
    assert config_of_release({"layers.0.blocks.0.x": torch.zeros(1)}, {}) is None


def test_names_and_palette_come_along() -> None:
    names = ["wall", "bed ", *map(str, range(2, 150))]  # a blank as mmseg has one
    meta = {"CLASSES": tuple(names), "PALETTE": [(i, 0, 255) for i in range(150)]}
    config = config_of_release(layout("semfpn_t"), meta)
    assert config["label_names"][:3] == ["wall", "bed ", "2"]
    assert config["palette"][149] == [149, 0, 255]


def test_wrong_number_of_names() -> None:
    with pytest.raises(ValueError, match="2 entries for 150 classes"):
        config_of_release(layout("semfpn_t"), {"CLASSES": ["a", "b"]})


@pytest.mark.parametrize("colour", [(1, 2), (1, 2, 256), 7, "red"])
def test_palette_without_colours(colour: object) -> None:
    with pytest.raises(ValueError, match=r"PALETTE.*where red, green and blue, 0 to 255"):
        config_of_release(layout("semfpn_t"), {"PALETTE": [colour] * 150})


def test_unknown_head() -> None:
    state = layout("semfpn_t")
    del state["decode_head.scale_heads.0.0.conv.weight"]
    with pytest.raises(ValueError, match="semantic_fpn, upernet"):
        config_of_release(state, {})


def test_load_reads_a_file(tmp_path) -> None:
    buffers = json.loads((GOLDEN / "relpos.json").read_text())
    state = golden_state(release_keys("semfpn_t")) | {
        f"backbone.{key.removeprefix('t.')}": torch.tensor(values)
        for key, values in buffers.items()
        if key.startswith("t.")
    }
    assert state.keys() == release_keys("semfpn_t").keys()
    meta = {"CLASSES": tuple(f"class {i}" for i in range(150))}
    path = tmp_path / "RMT_FPN_t.pth"
    torch.save({"meta": meta, "state_dict": state}, path)
    model = load(path)
    assert isinstance(model, rmt.segmentation.Segmenter)
    assert not model.training
    assert model.info["label_names"][149] == "class 149"
    kept = model.state_dict()
    bias = state["decode_head.conv_seg.bias"]
    assert torch.equal(kept["head.classifier.conv.bias"], bias)

    other = dict(state)
    other["backbone.layers.2.Relpos.decay"] = state["backbone.layers.2.Relpos.decay"] * 1.01
    with pytest.raises(ValueError, match=r"layers\.2\.Relpos\.decay of the file is not rmt_t's"):
        load({"state_dict": other})

    missing = dict(state)
    del missing["neck.fpn_convs.2.conv.bias"]
    missing["decode_head.extra.weight"] = torch.zeros(1)
    torch.save({"meta": meta, "state_dict": missing}, path)
    with pytest.raises(
        ValueError, match=r"\+ decode_head\.extra\.weight\n.*− neck\.fpn_convs\.2\.conv\.bias"
    ):
        load(path)


def test_classifier_weights_into_the_backbone(tmp_path) -> None:
    classifier = create_model("rmt_nano", 10)
    classifier.save_pretrained(tmp_path)
    model = create_segmenter("semantic_fpn", "rmt_nano", 3, channels=8)
    fresh = load_body(model, tmp_path)
    assert {name.split(".")[0] for name in fresh} == {"backbone", "neck", "head"}
    assert all(name.startswith("backbone.norms.") for name in fresh if name.startswith("backbone"))
    ours = model.backbone.body.state_dict()
    theirs = classifier.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_segmenter_weights_of_other_classes(tmp_path) -> None:
    """Fine-tuning on other classes: everything is taken but the classifier."""
    create_segmenter("semantic_fpn", "rmt_nano", 5, channels=8).save_pretrained(tmp_path)
    model = create_segmenter("semantic_fpn", "rmt_nano", 3, channels=8)
    fresh = load_body(model, tmp_path)
    assert set(fresh) == {"head.classifier.conv.weight", "head.classifier.conv.bias"}
