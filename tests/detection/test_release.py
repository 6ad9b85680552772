"""Every detection layout of the release is recognised and fits, and its class names come along."""

import json

import pytest
import torch
from torch import Tensor

from golden_rule import GOLDEN, every_name_is_found_without_its_key, golden_state, release_keys
from rmt.detection import RULES, MaskRCNN, config_of_release, from_config
from rmt.weights.load import load
from rmt.weights.release import rename

HEADS = {"retinanet": "retinanet", "maskrcnn": "mask_rcnn", "casrcnn": "cascade_mask_rcnn"}
LAYOUTS = sorted(path.stem for kind in HEADS for path in (GOLDEN / "keys").glob(f"{kind}_*.json"))


def layout(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        return {key: torch.empty(shape) for key, shape in release_keys(name).items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str) -> None:
    kind, size = name.split("_")
    state = layout(name)
    config = config_of_release(state, {})
    assert config is not None
    assert config["architecture"] == HEADS[kind]
    assert config["num_classes"] == 80
    assert config["model_args"] == {"backbone": "rmt_" + {"m": "b"}.get(size, size)}
    with torch.device("meta"):
        model = from_config(config)
    renamed = rename(state, RULES)
    assert not renamed.unknown
    every_name_is_found_without_its_key(renamed)
    ours = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in renamed.tensors.items()} == ours
    published = json.loads((GOLDEN / "keys" / f"{name}.json").read_text())["params"]
    assert sum(p.numel() for p in model.parameters()) == published


def test_ten_layouts() -> None:
    assert len(LAYOUTS) == 10


def test_other_files_are_left_to_others() -> None:
    assert config_of_release({"decode_head.conv_seg.weight": torch.zeros(1)}, {}) is None


def test_wrong_number_of_names() -> None:
    with pytest.raises(ValueError, match="2 names for 80 classes"):
        config_of_release(layout("retinanet_t"), {"CLASSES": ("cat", "dog")})


def test_load_reads_a_file(tmp_path) -> None:
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
