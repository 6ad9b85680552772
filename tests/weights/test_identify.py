"""Every layout of the release is recognised by its keys, fits, and brings its class names."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from golden_rule import GOLDEN, every_name_is_found_without_its_key, golden_state, release_keys
from rmt.detection.rcnn import MaskRCNN
from rmt.modeling.saved import Description
from rmt.segmentation.segmenter import Segmenter
from rmt.task import get_task
from rmt.weights.identify import identify
from rmt.weights.layouts import LAYOUTS
from rmt.weights.load import load
from rmt.weights.read import Content
from rmt.weights.templates import Template

HEADS = {
    "rmt": None,
    "retinanet": "retinanet",
    "maskrcnn": "mask_rcnn",
    "casrcnn": "cascade_mask_rcnn",
    "semfpn": "semantic_fpn",
    "upernet": "upernet",
}
NAMES = sorted(path.stem for path in (GOLDEN / "keys").glob("*.json"))


def layout(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return {key: torch.empty(shape) for key, shape in release_keys(name).items()}


def describe(name: str, meta: dict[str, Any] | None = None) -> Description:
    return identify(Content({"state_dict": layout(name), "meta": meta or {}}), name).description


def expected(name: str) -> tuple[str, str, int, dict[str, Any]]:
    """Return task, architecture, classes and arguments by the name of a golden layout."""
    kind, size, *starred = name.split("_")
    variant = "rmt_" + (size if kind == "rmt" else {"m": "b"}.get(size, size))
    if kind == "rmt":
        args = {
            "in_chans": 3,
            "token_labels": bool(starred),
            "aux_width": {"b": 512, "l": 512, "s": 512}[size] if starred else None,
        }
        return "classification", variant, 1000, args
    if kind in ("semfpn", "upernet"):
        width = {"semfpn": 128, "upernet": 512}[kind]
        args = {"backbone": variant, "in_chans": 3, "channels": width}
        return "segmentation", HEADS[kind], 150, args
    return "detection", HEADS[kind], 80, {"backbone": variant}


def test_all_layouts_are_here() -> None:
    assert len(NAMES) == 24


@pytest.mark.parametrize("name", NAMES)
def test_layout(name: str) -> None:
    found = identify(Content({"state_dict": layout(name)}), name)
    description, renamed = found.description, found.renamed
    task, architecture, num_classes, args = expected(name)
    if task == "classification" and args["token_labels"]:
        args["aux_width"] = release_keys(name)["aux_head.weight"][1]
    assert description.task == task
    assert description.config["architecture"] == architecture
    assert description.config["num_classes"] == num_classes
    assert description.config["model_args"] == args
    assert renamed is not None
    assert not renamed.unknown
    every_name_is_found_without_its_key(renamed)
    with torch.device("meta"):
        model = get_task(task).from_config(description.config)
    ours = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in found.tensors.items()} == ours
    if task != "classification":
        published = json.loads((GOLDEN / "keys" / f"{name}.json").read_text())["params"]
        assert sum(p.numel() for p in model.parameters()) == published


@pytest.mark.parametrize("name", NAMES)
def test_no_layout_is_taken_for_another(name: str) -> None:
    """The first layout whose sentinel is there is the only one, but for the backbone's names."""
    keys = release_keys(name)
    found = [any(Template(row.sentinel).read(key) is not None for key in keys) for row in LAYOUTS]
    matching = [row.sentinel for row, there in zip(LAYOUTS, found, strict=True) if there]
    assert len(matching) == 1 or matching[1:] == ["decode_head.conv_seg.{rest}"]


@pytest.mark.parametrize(("name", "classes"), [("semfpn_t", 150), ("retinanet_t", 80)])
def test_names_and_palette_come_along(name: str, classes: int) -> None:
    names = ["wall", "bed ", *map(str, range(2, classes))]  # mmseg has such a blank
    meta = {"CLASSES": tuple(names), "PALETTE": [(i, 0, 255) for i in range(classes)]}
    info = describe(name, meta).info
    assert info["label_names"][:3] == ["wall", "bed ", "2"]
    assert info["palette"][classes - 1] == [classes - 1, 0, 255]


@pytest.mark.parametrize(("name", "classes"), [("semfpn_t", 150), ("maskrcnn_t", 80)])
def test_wrong_number_of_names(name: str, classes: int) -> None:
    with pytest.raises(ValueError, match=f"2 entries for {classes} classes"):
        describe(name, {"CLASSES": ("cat", "dog")})


@pytest.mark.parametrize("colour", [(1, 2), (1, 2, 256), 7, "red"])
def test_palette_without_colours(colour: object) -> None:
    with pytest.raises(ValueError, match=r"PALETTE.*where red, green and blue, 0 to 255"):
        describe("semfpn_t", {"PALETTE": [colour] * 150})


def test_unknown_decode_head() -> None:
    state = {k: v for k, v in layout("semfpn_t").items() if ".scale_heads." not in k}
    with pytest.raises(ValueError, match=r"not a known one.*semantic_fpn, upernet"):
        identify(Content(state), "a state dict")


def test_load_reads_a_detector(tmp_path) -> None:
    state = golden_state(release_keys("maskrcnn_t"))
    meta = {"CLASSES": tuple(f"class {i}" for i in range(80))}
    path = tmp_path / "maskrcnn_t.pth"
    torch.save({"meta": meta, "state_dict": state}, path)
    model = load(path, min_size=400)
    assert isinstance(model, MaskRCNN)
    assert model.transform.min_size == 400
    assert model.info["label_names"][79] == "class 79"
    assert torch.equal(
        model.state_dict()["box_heads.0.linears.1.bias"],
        state["roi_head.bbox_head.shared_fcs.1.bias"],
    )
    del state["rpn_head.rpn_conv.bias"]
    torch.save({"meta": meta, "state_dict": state}, path)
    with pytest.raises(ValueError, match=r"− rpn_head\.rpn_conv\.bias \(rpn\.conv\.bias\)"):
        load(path)


def test_load_reads_a_segmenter(tmp_path) -> None:
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
    assert isinstance(model, Segmenter)
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
