"""Models written to folders and hub repositories and read back, without a network."""

import ast
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

import rmt
from rmt.modeling import saved
from rmt.modeling.pretrained import Pretrained, model_card
from rmt.modeling.saved import write_safetensors

OPTIONS = {
    "plain": {},
    "starred": {"token_labels": True},
    "changed": {"lce": False, "decay_max": (5.0, 6.0, 7.0, 8.0), "in_chans": 1},
    "no_classifier": {"num_classes": 0},
    "unpooled": {"global_pool": ""},
}


def small(**options) -> rmt.RMT:
    return rmt.create_model("rmt_nano", **{"num_classes": 4, "depths": (1, 1, 1, 1)} | options)


@torch.no_grad()
@pytest.mark.parametrize("what", OPTIONS)
def test_round_trip(what: str, tmp_path: Path) -> None:
    model = small(**OPTIONS[what]).eval()
    model.info = {"label_names": ["a", "b", "c", "d"], "source": "a test"}
    assert model.save_pretrained(tmp_path / "deep" / "folder") == tmp_path / "deep" / "folder"
    x = torch.randn(1, model.in_chans, 40, 56)
    read = rmt.RMT.from_pretrained(tmp_path / "deep" / "folder")
    assert not read.training
    assert read.variant == model.variant
    assert read.info | model.info == read.info
    assert read(x).equal(model(x))
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'deep' / 'folder'}", pretrained=True)
    assert by_timm.eval()(x).equal(model(x))
    assert by_timm.variant == model.variant
    from_file = rmt.RMT.from_pretrained(tmp_path / "deep" / "folder" / "model.safetensors")
    assert from_file(x).equal(model(x))


def test_the_folder_says_what_it_holds(tmp_path: Path) -> None:
    model = small(lce=False)
    model.info = {"label_names": ["a", "b", "c", "d"]}
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        described = json.loads(file.metadata()["rmt"])
    assert described.keys() == {"task", "rmt_version", "config", "info"}
    assert described["task"] == "classification"
    assert described["rmt_version"] == rmt.__version__
    assert described["config"]["model_args"]["lce"] is False
    assert described["config"]["pretrained_cfg"]["mean"] == [0.485, 0.456, 0.406]
    assert described["info"] == {"label_names": ["a", "b", "c", "d"]}
    # What timm and transformers look for stands at the top as well.
    assert config == described["config"] | described["info"] | described
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_transforms_travel_with_the_weights(tmp_path: Path) -> None:
    model = small()
    model.pretrained_cfg |= {"input_size": (3, 96, 96), "mean": (0.1, 0.2, 0.3)}
    model.save_pretrained(tmp_path)
    read = rmt.RMT.from_pretrained(tmp_path)
    assert tuple(read.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)
    data = timm.data.resolve_model_data_config(
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    )
    assert tuple(data["input_size"]) == (3, 96, 96)
    assert tuple(data["mean"]) == (0.1, 0.2, 0.3)


def test_tied_and_strided_weights_are_written_whole(tmp_path: Path) -> None:
    model = small().to(memory_format=torch.channels_last)
    assert not model.stem[0].weight.is_contiguous()
    read = rmt.RMT.from_pretrained(model.save_pretrained(tmp_path))
    assert read.stem[0].weight.equal(model.stem[0].weight)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small()
    model.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def half(tensors, path, metadata) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(saved, "save_file", half)
    with pytest.raises(OSError, match="no space"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder.*hf-hub:user/name"):
        rmt.RMT.from_pretrained(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors"):
        rmt.RMT.from_pretrained(tmp_path)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(ValueError, match="carries no description"):
        rmt.RMT.from_pretrained(foreign)
    foreign.write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        rmt.RMT.from_pretrained(foreign)
    model = small()
    state, description = model.state_dict(), model.describe()
    write_safetensors(foreign, state, description | {"task": "detection"})
    with pytest.raises(ValueError, match=r"'detection', not 'classification'.*rmt\.load"):
        rmt.RMT.from_pretrained(foreign)
    config = description["config"] | {"architecture": "rmt_nanoo"}
    write_safetensors(foreign, state, description | {"config": config})
    with pytest.raises(ValueError, match="did you mean 'rmt_nano'"):
        rmt.RMT.from_pretrained(foreign)
    del state["head.fc.bias"]
    write_safetensors(foreign, state, description)
    with pytest.raises(ValueError, match=r"foreign.* does not fit.*\n  − head\.fc\.bias"):
        rmt.RMT.from_pretrained(foreign)


class FakeHub:
    """Stands in for `huggingface_hub.HfApi`: a repository is a folder."""

    root: Path
    calls: list[tuple]

    def __init__(self, token: str | None = None) -> None:
        self.calls.append(("api", token))

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append(("create", repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: str, revision, commit_message: str):
        for file in Path(folder_path).iterdir():
            (self.root / file.name).write_bytes(file.read_bytes())
        self.calls.append(("upload", repo_id, revision, commit_message))
        return f"https://huggingface.co/{repo_id}/commit/1"


@torch.no_grad()
def test_push_and_pull(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeHub, "root", tmp_path, raising=False)
    monkeypatch.setattr(FakeHub, "calls", [], raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda _, name: str(tmp_path / name))
    model = small().eval()
    url = model.push_to_hub("someone/rmt", private=True, token="secret", commit_message="First")
    assert url.endswith("commit/1")
    assert FakeHub.calls == [
        ("api", "secret"),
        ("create", "someone/rmt", True, True),
        ("upload", "someone/rmt", None, "First"),
    ]
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ["README.md", "config.json", "model.safetensors"]
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: ")
    assert "secret" not in card
    x = torch.randn(1, 3, 40, 56)
    assert rmt.RMT.from_pretrained("hf-hub:someone/rmt")(x).equal(model(x))


@pytest.mark.parametrize("change", ["fuse", "prune"])
def test_what_could_not_be_read_again_is_not_written(change: str, tmp_path: Path) -> None:
    model = small()
    if change == "fuse":
        model = model.fuse()
    else:
        model.prune_intermediate_layers([1])
    with pytest.raises(ValueError, match="save it as it was before fuse"):
        model.save_pretrained(tmp_path / "folder")
    with pytest.raises(ValueError, match="save it as it was before fuse"):
        rmt.save(model, tmp_path / "file.safetensors")
    assert not list(tmp_path.iterdir())


def test_other_classes_have_no_old_names(tmp_path: Path) -> None:
    model = rmt.create_model("rmt_nano", 4)
    model.info["label_names"] = ["a", "b", "c", "d"]
    model.reset_classifier(6)
    predictor = rmt.Predictor(rmt.load(model.save_pretrained(tmp_path)), top=6)
    answer = predictor(np.zeros((40, 40), np.uint8))
    assert {top["name"] for top in answer["top"]} == set("012345")


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (small, "image-classification"),
        (lambda: rmt.create_detector("retinanet", "rmt_nano"), "object-detection"),
        (lambda: rmt.create_segmenter("upernet", "rmt_nano"), "image-segmentation"),
    ],
)
def test_a_card_has_the_words_of_the_hub(make: Callable[[], Pretrained], word: str) -> None:
    model = make()
    model.info["source"] = "RMT-T.pth"
    card = model_card(model, "me/mine")
    head = yaml.safe_load(card.split("---")[1])
    assert head["pipeline_tag"] == word
    assert 'rmt.load("hf-hub:me/mine")' in card
    assert "Source of the weights: RMT-T.pth" in card


def test_a_card_says_whose_weights_they_are() -> None:
    model = small()
    model.pretrained_cfg["license"] = "unlicensed-release"
    head = yaml.safe_load(model_card(model, "me/mine").split("---")[1])
    assert (head["license"], head["license_name"]) == ("other", "unlicensed-release")


def test_a_card_shows_what_strangers_wrote_and_does_nothing_else() -> None:
    model = small()
    model.info["source"] = "x.pth\n---\n# <script>alert(1)</script> [a](javascript:b) `c` \x1b[2J"
    model.pretrained_cfg["license"] = "mit\npipeline_tag: evil\n---"
    model.info["recipe"] = {"data": {"root": "/home/ann/data"}}
    card = model_card(model, 'me/mine"); import os; ("')
    head = yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
    assert head["pipeline_tag"] == "image-classification"
    assert head["license_name"] == r"mit\npipeline_tag: evil\n---"
    assert card.count("\n---\n") == 1
    assert r"\<script\>alert\(1\)" in card  # shown as it is written
    assert r"\[a\]\(javascript:b\) \`c\`" in card
    assert not [word for word in ("\x1b", "ann") if word in card]
    code = card.split("```python\n")[1].split("```")[0]
    assert len(ast.parse(code).body) == 2  # an import and one call


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        small().save_pretrained(tmp_path)
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    assert modes == {"config.json": 0o640, "model.safetensors": 0o640}


def test_the_first_form_of_a_description_is_read(tmp_path: Path) -> None:
    """Everything on one level, as the first files of this package have it."""
    model = rmt.create_model("rmt_nano", 2).eval()
    model.info["label_names"] = ["cat", "dog"]
    apart = model.describe()
    flat = {"task": apart["task"], "rmt_version": "0.1.0"} | apart["config"] | apart["info"]
    tensors = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(tensors, tmp_path / "old.safetensors", {"rmt": json.dumps(flat)})
    loaded = rmt.load(tmp_path / "old.safetensors")
    config = json.loads(json.dumps(loaded.describe()["config"]))  # JSON has no tuples
    assert config == json.loads(json.dumps(apart["config"]))
    assert loaded.info["label_names"] == ["cat", "dog"]
