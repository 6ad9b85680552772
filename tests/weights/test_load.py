"""Files of weights: what is read, what is chosen, and what is refused with which words."""

import argparse
import copy
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from torch import Tensor

import rmt
from golden_rule import GOLDEN, golden_state, release_keys
from rmt.modeling.pretrained import Pretrained
from rmt.weights.load import load, load_body, save
from rmt.weights.read import read_pickle

IMAGE = torch.randn(1, 3, 64, 48, generator=torch.Generator().manual_seed(1))


def geometry(letter: str) -> dict[str, Tensor]:
    """Return the buffers that the release stores beside its weights."""
    stored = json.loads((GOLDEN / "relpos.json").read_text())
    chosen = {k.removeprefix(f"{letter}."): v for k, v in stored.items() if k[0] == letter}
    return {key: torch.tensor(value) for key, value in chosen.items()}


@pytest.fixture(scope="module")
def tiny() -> dict[str, Tensor]:
    """Return the release's RMT-T, as its file holds it."""
    return golden_state(release_keys("rmt_t")) | geometry("t")


def shifted(state: dict[str, Tensor], by: float = 1.0) -> dict[str, Tensor]:
    """Return the same state with another bias of the classifier."""
    return state | {"head.bias": state["head.bias"] + by}


@pytest.fixture(scope="module")
def release_file(tiny: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a file as the release does: raw weights, their average, and the command line."""
    path = tmp_path_factory.mktemp("release") / "RMT-T.pth"
    torch.save(
        {
            "model": tiny,
            "model_ema": shifted(tiny),
            "epoch": 299,
            "args": argparse.Namespace(lr=1e-3, data_path="/data"),
        },
        path,
    )
    return path


@pytest.fixture(scope="module")
def nano() -> rmt.RMT:
    torch.manual_seed(5)
    model = rmt.create_model("rmt_nano", 4, drop_path_rate=0.3, lce=False).eval()
    model.info = {"label_names": list("abcd"), "source": "made here", "recipe": {"seed": 3}}
    return model


def bias(model: rmt.RMT) -> Tensor:
    return model.head.fc.bias


@torch.no_grad()
def test_the_release_s_file(release_file: Path, tiny: dict[str, Tensor], tmp_path: Path) -> None:
    model = load(release_file)
    assert isinstance(model, rmt.RMT)
    assert not model.training
    assert (model.variant.name, model.num_classes) == ("rmt_t", 1000)
    assert model.info["source"] == "RMT-T.pth"
    assert bias(model).equal(tiny["head.bias"])  # published of RMT-T: raw
    assert model.info["weights"] == "raw"
    ema = load(release_file, weights="ema")
    assert bias(ema).equal(tiny["head.bias"] + 1)
    logits = model(IMAGE)
    assert torch.allclose(ema(IMAGE), logits + 1, atol=1e-4)

    converted = rmt.convert(release_file, tmp_path / "t.safetensors", weights="raw")
    again = load(converted)
    assert again(IMAGE).equal(logits)
    assert_equal_states(again, model)
    assert plain(again.describe()) == plain(model.describe())
    assert again.pretrained_cfg["crop_pct"] == 0.875
    other = load(converted, drop_path_rate=0.4)
    assert other.stages[-1].blocks[-1].drop_path.drop_prob == pytest.approx(0.4)


def plain(description: dict) -> dict:
    """Return a description as JSON keeps it, which knows no tuples."""
    return json.loads(json.dumps(description))


def assert_equal_states(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    assert all(value.equal(expected[key]) for key, value in ours.state_dict().items())


def test_the_average_is_the_published_choice() -> None:
    state = golden_state(release_keys("rmt_s"))
    both = {"model": state, "model_ema": shifted(state)}
    model = load(both)
    assert model.info["weights"] == "ema"
    assert bias(model).equal(state["head.bias"] + 1)
    assert load({"model": state, "model_ema": None}).info["weights"] == "raw"
    with pytest.raises(ValueError, match=r"a state dict holds 'raw' weights only, no 'ema' ones"):
        load({"model": state}, weights="ema")


@pytest.mark.parametrize("width", [512, 1024])
def test_starred_files_with_an_auxiliary_head_of_either_width(width: int) -> None:
    state = golden_state(release_keys("rmt_s_tl"))
    state["aux_head.weight"] = torch.randn(1000, width)
    model = load({"model_ema": state})
    assert model.aux_head.in_features == width
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == {512: 27_480_240, 1024: 27_992_240}[width]
    assert model.pretrained_cfg["crop_pct"] == 0.96


def test_a_state_dict_in_memory(tiny: dict[str, Tensor]) -> None:
    assert bias(load(tiny)).equal(tiny["head.bias"])
    headless = {k: v for k, v in tiny.items() if not k.startswith("head.")}
    assert load(headless).num_classes == 0


def test_a_bare_state_dict_of_ours(tmp_path: Path) -> None:
    model = rmt.create_model("rmt_nano", 4, in_chans=1)
    assert_equal_states(load(model.state_dict()), model)
    torch.save(model.state_dict(), tmp_path / "nano.pth")
    found = load(tmp_path / "nano.pth")
    assert_equal_states(found, model)
    assert found.pretrained_cfg["input_size"] == (3, 224, 224)
    changed = rmt.create_model("rmt_nano", 4, lce=False)
    with pytest.raises(ValueError, match=r"− stages\.0\.blocks\.0\.attn\.lce\.weight"):
        load(changed.state_dict())
    assert_equal_states(load(changed.state_dict(), lce=False), changed)


def test_added_missing_and_misshapen_keys(tiny: dict[str, Tensor]) -> None:
    state = dict(tiny)
    state["layers.0.blocks.0.retention.extra"] = torch.zeros(1)
    state["layers.0.blocks.9.pos.conv.weight"] = torch.zeros(1)
    del state["layers.1.blocks.1.ffn.fc1.bias"]
    state["head.weight"] = torch.zeros(1000, 7)
    with pytest.raises(ValueError, match="does not fit the model it looks like") as error:
        load(state)
    assert str(error.value).splitlines()[1:] == [
        "  + layers.0.blocks.0.retention.extra",
        "  + layers.0.blocks.9.pos.conv.weight",
        "  − layers.1.blocks.1.ffn.fc1.bias (stages.1.blocks.1.mlp.fc1.bias)",
        "  ≠ head.weight (head.fc.weight): (1000, 7) in the file, (1000, 1024) here",
    ]
    many = tiny | {f"layers.0.blocks.0.other{i}": torch.zeros(1) for i in range(50)}
    with pytest.raises(ValueError, match="… 10 more"):
        load(many)


@pytest.mark.parametrize("name", ["decay", "angle"])
def test_another_geometry(tiny: dict[str, Tensor], name: str) -> None:
    key = f"layers.2.Relpos.{name}"
    with pytest.raises(ValueError, match=rf"{re.escape(key)} of the file is not rmt_t's"):
        load(tiny | {key: tiny[key] * 1.01})


def test_the_layout_of_december_2023(tiny: dict[str, Tensor], tmp_path: Path) -> None:
    new = (".ffn.dwconv.", ".Relpos.angle", "proj.")
    old = {k: v for k, v in tiny.items() if not any(part in k for part in new) or "_proj" in k}
    torch.save({"model": old, "model_ema": old}, tmp_path / "old.pth")
    with pytest.raises(ValueError, match=r"old\.pth: this is the layout of December 2023") as error:
        load(tmp_path / "old.pth")
    assert "use a file of June 2024" in str(error.value)


def test_another_size(tiny: dict[str, Tensor]) -> None:
    state = {k: v for k, v in tiny.items() if not k.startswith("layers.2.blocks.7")}
    with pytest.raises(ValueError, match=r"no RMT variant has \(2, 2, 7, 2\) blocks"):
        load(state)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "nextvit_small"])
@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
def test_weights_of_another_model(name: str, wrap: str | None) -> None:
    with torch.device("meta"):
        other = timm.create_model(name).state_dict()
    with pytest.raises(
        ValueError, match=r"its keys are of no known model|these are no RMT weights"
    ):
        load(other if wrap is None else {wrap: other})


def test_weights_named_like_ours_but_of_another_model() -> None:
    """Swin's own files count layers and blocks as the release does."""
    other = {"layers.0.blocks.0.norm1.weight": torch.zeros(96), "head.bias": torch.zeros(9)}
    with pytest.raises(ValueError, match=r"these are no RMT weights"):
        load({"model": other})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "holds no weights"),
        ({"epoch": 3, "lr": 0.1}, r"holds no weights.*\['epoch', 'lr'\]"),
        ({"model": 3}, "holds no weights.*int"),
        ({"state_dict": {"a": 1}}, r"holds no weights.*\['a'\]"),
        ([1, 2], "holds a list, not a dict"),
    ],
)
def test_files_without_weights(content: object, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=rf"x\.pth {words}"):
        load(tmp_path / "x.pth")


class Runs:
    """An object whose unpickling writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_file_that_would_run_code(form: str, tmp_path: Path) -> None:
    ran, path = tmp_path / "ran", tmp_path / "x.pth"
    content = {"model": {"a": torch.zeros(1)}, "args": Runs(ran)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ValueError, match=r"x\.pth was not read: it asks to run '\S+' on loading"):
        load(path)
    assert not ran.exists()
    pickle.loads(pickle.dumps(Runs(ran)))
    assert ran.exists()  # so the trap does work


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated(legacy: bool, share: float, tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a": torch.randn(1000)}, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"x\.pth is damaged or not a checkpoint"):
        load(path)


# torch says so of files whose damaged first bytes name another protocol.
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_bytes_of_chance(tmp_path: Path) -> None:
    """Whatever is in a file, it is read or refused with a sentence."""
    path = tmp_path / "x.pth"
    generator = torch.Generator().manual_seed(0)
    refusals = []
    for legacy in (False, True):
        torch.save(
            {"a": torch.randn(9), "b": [1, "x"]}, path, _use_new_zipfile_serialization=not legacy
        )
        whole = path.read_bytes()
        for _ in range(150):
            damaged = bytearray(whole)
            for at in torch.randint(len(whole), (4,), generator=generator).tolist():
                damaged[at] = int(torch.randint(256, (), generator=generator))
            path.write_bytes(damaged)
            try:
                read_pickle(path)
            except ValueError as error:
                refusals.append(str(error))
    assert refusals
    assert all("x.pth" in words for words in refusals)


def test_damaged_safetensors(nano: rmt.RMT, tmp_path: Path) -> None:
    path = save(nano, tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"x\.safetensors is not a whole safetensors file"):
        load(path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*gone\.pth"):
        load(tmp_path / "gone.pth")
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        load(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("form", ["file", "folder", "convert"])
def test_everything_travels_with_the_weights(nano: rmt.RMT, form: str, tmp_path: Path) -> None:
    if form == "folder":
        path = nano.save_pretrained(tmp_path / "model")
    else:
        path = rmt.save(nano, tmp_path / "x.safetensors")
    if form == "convert":
        path = rmt.convert(path, tmp_path / "y.safetensors")
    model = rmt.load(path)
    assert not model.training
    assert model(IMAGE).equal(nano(IMAGE))
    assert_equal_states(model, nano)
    assert model.variant == nano.variant
    assert model.variant.lce is False
    assert {k: model.info[k] for k in nano.info} == nano.info
    assert plain(model.describe()) == plain(nano.describe())
    if form == "folder":
        described = json.loads((path / "config.json").read_text())
        assert_equal_states(rmt.RMT.from_pretrained(path), nano)
    else:
        with safe_open(path, "pt") as file:
            described = json.loads(file.metadata()["rmt"])
    assert described["config"]["architecture"] == "rmt_nano"
    assert described["rmt_version"] == rmt.__version__


def test_timm_reads_the_folder(nano: rmt.RMT, tmp_path: Path) -> None:
    plain = rmt.create_model("rmt_nano", 4)
    plain.save_pretrained(tmp_path)
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert_equal_states(model, plain)


def test_what_is_not_written(nano: rmt.RMT, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.pth must end in \.safetensors"):
        save(nano, tmp_path / "x.pth")
    assert not list(tmp_path.iterdir())


def test_a_safetensors_file_of_others(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="its keys are of no known model"):
        load(tmp_path / "x.safetensors")


def test_unknown_override(nano: rmt.RMT, tmp_path: Path) -> None:
    path = save(nano, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"unknown option 'drop_path'.*did you mean"):
        load(path, drop_path=0.1)


@pytest.mark.parametrize(
    ("make", "option", "meant"),
    [
        (lambda: rmt.create_detector("retinanet", "rmt_nano"), "minsize", "min_size"),
        (lambda: rmt.create_segmenter("upernet", "rmt_nano", channels=32), "channel", "channels"),
    ],
)
def test_unknown_override_of_a_dense_model(
    make: Callable[[], Pretrained], option: str, meant: str, tmp_path: Path
) -> None:
    make().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"unknown option '{option}' of .*did you mean '{meant}'"):
        load(tmp_path, **{option: 32})
    assert load(tmp_path, drop_path_rate=0.5).config["model_args"]["drop_path_rate"] == 0.5


def test_fine_tuning_keeps_the_body(nano: rmt.RMT, tmp_path: Path) -> None:
    path = save(nano, tmp_path / "x.safetensors")
    model = rmt.create_model("rmt_nano", 7, lce=False)
    new = load_body(model, path)
    assert new == ["head.fc.weight", "head.fc.bias"]
    donor = nano.state_dict()
    assert all(v.equal(donor[k]) for k, v in model.state_dict().items() if k not in new)
    same = rmt.create_model("rmt_nano", 4, lce=False)
    assert load_body(same, path) == []
    starred = rmt.create_model("rmt_nano", 4, lce=False, token_labels=True)
    assert load_body(starred, path) == ["aux_head.weight", "aux_head.bias"]


@pytest.mark.parametrize(
    ("make", "per_class"),
    [
        (lambda: rmt.create_model("rmt_nano", 2, token_labels=True), {"head.fc", "aux_head"}),
        (lambda: rmt.create_detector("retinanet", "rmt_nano", num_classes=2), {"head.cls"}),
        (
            lambda: rmt.create_detector("mask_rcnn", "rmt_nano", num_classes=2),
            {"box_heads.0.cls", "box_heads.0.reg", "mask_heads.0.logits"},
        ),
        (
            lambda: rmt.create_segmenter("upernet", "rmt_nano", 2),
            {"head.classifier.conv", "aux_head.classifier.conv"},
        ),
    ],
)
def test_fine_tuning_on_as_many_other_classes(
    make: Callable[[], rmt.RMT], per_class: set[str], tmp_path: Path
) -> None:
    """What was learnt of cats and dogs says nothing of cars and ships."""
    donor, model = make(), make()
    donor.info["label_names"] = ["cat", "dog"]
    donor.save_pretrained(tmp_path)
    model.info["label_names"] = ["car", "ship"]
    new = load_body(model, tmp_path)
    assert {key.rsplit(".", 1)[0] for key in new} == per_class
    model.info["label_names"] = ["cat", "dog"]
    assert load_body(model, tmp_path) == []


@pytest.mark.parametrize("changed", [{}, {"dims": (32, 64, 96, 160), "lce": False}])
def test_fine_tuning_from_another_variant(
    nano: rmt.RMT, changed: dict[str, object], tmp_path: Path
) -> None:
    path = save(nano, tmp_path / "x.safetensors")
    model = rmt.create_model("rmt_nano", 4, **changed)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"does not fit this model's body.*Choose the variant"):
        load_body(model, path)
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())


def test_fine_tuning_a_detector_and_a_segmenter(nano: rmt.RMT, tmp_path: Path) -> None:
    donor = rmt.create_model("rmt_nano", 4)
    path = save(donor, tmp_path / "x.safetensors")
    body = donor.state_dict()
    for model in (
        rmt.create_detector("retinanet", backbone="rmt_nano", num_classes=3),
        rmt.create_segmenter("semantic_fpn", backbone="rmt_nano", num_classes=3),
    ):
        new = load_body(model, path)
        taken = {k: v for k, v in model.state_dict().items() if k not in new}
        assert all(v.equal(body[k.removeprefix("backbone.body.")]) for k, v in taken.items())
        assert not [k for k in new if k.startswith("backbone.body.")]


def test_fine_tuning_a_segmenter_from_a_classifier(tmp_path: Path) -> None:
    classifier = rmt.create_model("rmt_nano", 10)
    classifier.save_pretrained(tmp_path)
    model = rmt.create_segmenter("semantic_fpn", "rmt_nano", 3, channels=8)
    new = load_body(model, tmp_path)
    assert {name.split(".")[0] for name in new} == {"backbone", "neck", "head"}
    assert all(name.startswith("backbone.norms.") for name in new if name.startswith("backbone"))
    ours, theirs = model.backbone.body.state_dict(), classifier.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_fine_tuning_a_segmenter_of_other_classes(tmp_path: Path) -> None:
    """Everything is copied but the classifier."""
    rmt.create_segmenter("semantic_fpn", "rmt_nano", 5, channels=8).save_pretrained(tmp_path)
    model = rmt.create_segmenter("semantic_fpn", "rmt_nano", 3, channels=8)
    new = load_body(model, tmp_path)
    assert set(new) == {"head.classifier.conv.weight", "head.classifier.conv.bias"}


@pytest.mark.parametrize("backbone", ["rmt_nano", "resnet18"])
def test_fine_tuning_from_another_dense_task(backbone: str, tmp_path: Path) -> None:
    donor = rmt.create_segmenter("semantic_fpn", backbone, 3, channels=32)
    donor.save_pretrained(tmp_path)
    model = rmt.create_detector("retinanet", backbone, num_classes=3)
    new = load_body(model, tmp_path)
    assert not [key for key in new if key.startswith("backbone.")]
    assert_equal_states(model.backbone, donor.backbone)
    other = rmt.create_detector("retinanet", "resnet34", num_classes=3)
    with pytest.raises(ValueError, match=r"does not fit this model's body"):
        load_body(other, tmp_path)


def test_public_names() -> None:
    assert set(rmt.__all__) <= set(dir(rmt))
    assert all(getattr(rmt, name) is not None for name in rmt.__all__)
    assert rmt.from_pretrained is rmt.load
    with pytest.raises(AttributeError, match="'rmt' has no attribute 'lode'"):
        _ = rmt.lode


@pytest.mark.parametrize(
    "key",
    [
        "patch_embed.proj.0.weight",
        "layers.0.blocks.0.final_layer_norm.weight",
        "layers.2.blocks.3.retention.q_proj.bias",
        "layers.0.downsample.reduction.weight",
        "head.bias",
        "head.weight",
        "norm.running_var",
    ],
)
def test_any_missing_key_is_listed(key: str, tiny: dict[str, Tensor]) -> None:
    state = {name: value for name, value in tiny.items() if name != key}
    with pytest.raises(ValueError, match=rf"model it looks like .*\n  − {re.escape(key)} \("):
        load(state)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layers.9.Relpos.decay", torch.zeros(4), r"layers\.9\.Relpos\.decay .* does not have"),
        ("aux_head.weight", torch.zeros(3, 512), r"≠ aux_head\.weight|− aux_head\.bias"),
        ("head.bias", torch.zeros(()), r"≠ head\.bias \(head\.fc\.bias\)"),
        (
            "patch_embed.proj.0.weight",
            torch.zeros(5),
            r"≠ patch_embed\.proj\.0\.weight \(stem\.0\.weight\)",
        ),
    ],
)
def test_strange_keys_are_listed(
    key: str, value: Tensor, message: str, tiny: dict[str, Tensor]
) -> None:
    with pytest.raises(ValueError, match=message):
        load(tiny | {key: value})


def test_a_hole_in_weights_of_ours(nano: rmt.RMT) -> None:
    state = nano.state_dict()
    del state["stages.1.blocks.0.norm1.weight"]
    with pytest.raises(ValueError, match=r"− stages\.1\.blocks\.0\.norm1\.weight"):
        load(state, lce=False)
