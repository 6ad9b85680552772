"""Weights as other tools write them: wrappers, timm, transformers, Lightning."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models._hub import save_for_hf
from timm.utils import CheckpointSaver
from torch import Tensor, nn

import rmt
from golden_rule import golden_state, release_keys
from rmt.weights.load import load, load_body

CHANGED = {"lce": False, "decay_max": (5.0, 6.0, 7.0, 8.0)}
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> rmt.RMT:
    torch.manual_seed(3)
    return rmt.create_model("rmt_nano", 4).eval()


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(1))


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


@torch.no_grad()
@pytest.mark.parametrize(
    "wrap",
    [
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("model."),
        prefixed("backbone."),
        prefixed("module._orig_mod.model."),
        lambda state: {"state_dict": prefixed("module.")(state)},
        lambda state: {"model": prefixed("_orig_mod.")(state), "epoch": 3},
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_wrappers(wrap: Callable, suffix: str, model: rmt.RMT, x: Tensor, tmp_path: Path) -> None:
    content, path = wrap(model.state_dict()), tmp_path / f"x{suffix}"
    if suffix == ".pth":
        torch.save(content, path)
    elif all(isinstance(value, Tensor) for value in content.values()):
        save_file(content, path)
    else:
        path = content  # a safetensors file has tensors alone
    assert load(path)(x).equal(model(x))


def test_what_pytorch_s_own_wrappers_write(model: rmt.RMT, x: Tensor) -> None:
    with torch.no_grad():
        wanted = model(x)
        for wrapped in (nn.DataParallel(model), torch.compile(model)):
            assert load(wrapped.state_dict())(x).equal(wanted)


def test_the_release_s_names_behind_a_prefix() -> None:
    state = golden_state(release_keys("rmt_t"))
    found = load({"state_dict": prefixed("module.")(state)})
    assert found.head.fc.bias.equal(state["head.bias"])
    assert found.info["published_recipe"] == "imagenet/rmt_t"
    broken = prefixed("module.")(state)
    del broken["module.head.bias"]
    broken["module.layers.0.blocks.0.extra"] = torch.zeros(1)
    with pytest.raises(ValueError, match="does not fit") as error:
        load(broken)
    assert str(error.value).splitlines()[1:] == [
        "  + module.layers.0.blocks.0.extra",
        "  − module.head.bias (head.fc.bias)",
    ]


def test_holes_behind_a_prefix_are_named_as_in_the_file(model: rmt.RMT) -> None:
    state = prefixed("module.")(model.state_dict())
    del state["module.stages.0.blocks.0.norm1.bias"]
    with pytest.raises(
        ValueError,
        match=r"− module\.stages\.0\.blocks\.0\.norm1\.bias \(stages\.0\.blocks\.0\.norm1\.bias\)",
    ):
        load(state)


def test_a_detector_of_the_release_behind_a_prefix() -> None:
    state = golden_state(release_keys("retinanet_t"))
    found = load({"state_dict": prefixed("module.")(state)})
    assert found.state_dict()["head.cls.bias"].equal(state["bbox_head.retina_cls.bias"])


class Classifier(L.LightningModule):
    """What a user of Lightning writes around a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.save_hyperparameters({"lr": 0.1, "name": "mine"})
        self.model = network
        self.class_weight = nn.Parameter(torch.ones(4))

    def training_step(self, batch: list[Tensor], at: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.model(images) * self.class_weight, labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.mark.filterwarnings("ignore")  # advice of Lightning's on this small run
def test_a_checkpoint_of_lightning(
    model: rmt.RMT, x: Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = Classifier(rmt.create_model("rmt_nano", 4))
    data = torch.utils.data.TensorDataset(torch.randn(2, 3, 32, 32), torch.tensor([0, 3]))
    trainer = L.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with caplog.at_level(logging.WARNING):
        found = load(tmp_path / "last.ckpt")
    with torch.no_grad():
        assert found(x).equal(module.model.eval()(x))
    assert "lies behind 'model.'; 1 other tensors were left out, first class_weight" in caplog.text
    with pytest.raises(ValueError, match=r"last\.ckpt holds 'raw' weights only, no 'ema' ones"):
        load(tmp_path / "last.ckpt", weights="ema")


def test_a_backbone_with_a_head_of_others(model: rmt.RMT, caplog: pytest.LogCaptureFixture) -> None:
    body = {k: v for k, v in model.state_dict().items() if not k.startswith("head.fc")}
    with caplog.at_level(logging.WARNING):
        found = load(prefixed("backbone.")(body) | {"cls_head.fc.weight": torch.zeros(9, 4)})
    assert found.num_classes == 0
    assert "1 other tensors were left out, first cls_head.fc.weight" in caplog.text
    segmenter = rmt.create_segmenter("semantic_fpn", "rmt_nano", 3, channels=8)
    load_body(segmenter, _saved(prefixed("backbone.")(body)))
    assert segmenter.backbone.body.stem[0].weight.equal(model.stem[0].weight)


def _saved(state: State) -> Path:
    import tempfile

    path = Path(tempfile.mkdtemp()) / "x.pth"
    torch.save(state, path)
    return path


def test_two_networks_in_one_file(model: rmt.RMT) -> None:
    state = model.state_dict()
    with pytest.raises(ValueError, match=r"several networks, behind 'model\.' and 'net\.'; save"):
        load(prefixed("model.")(state) | prefixed("net.")(state))


def test_what_is_behind_an_unknown_word_is_not_taken(model: rmt.RMT) -> None:
    with pytest.raises(ValueError, match=r"its keys are of no known model, first \['teacher\.stem"):
        load(prefixed("teacher.")(model.state_dict()))


def test_a_dense_model_of_ours_without_its_description() -> None:
    state = rmt.create_detector("retinanet", "rmt_nano", num_classes=2).state_dict()
    with pytest.raises(ValueError, match=r"of a detector or segmenter .* without its description"):
        load(state)


@torch.no_grad()
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("options", [{}, CHANGED, {"token_labels": True, "in_chans": 1}])
@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_timm(safe: bool, options: dict, tmp_path: Path) -> None:
    made = timm.create_model("rmt_nano", num_classes=3, **options).eval()
    save_for_hf(
        made, tmp_path, model_config={"label_names": ["a", "b", "c"]}, safe_serialization=safe
    )
    names = {"model.safetensors" if safe else "pytorch_model.bin", "config.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    found = load(tmp_path)
    image = torch.randn(1, made.in_chans, 40, 56)
    assert found(image).equal(made(image))
    assert found.variant == made.variant
    assert found.info["label_names"] == ["a", "b", "c"]
    assert found.pretrained_cfg["crop_pct"] == 0.875
    assert rmt.load(rmt.convert(tmp_path, tmp_path / "ours.safetensors"))(image).equal(made(image))


@torch.no_grad()
def test_a_folder_of_transformers(x: Tensor, tmp_path: Path) -> None:
    import transformers

    config = transformers.TimmWrapperConfig(
        architecture="rmt_nano", num_labels=7, model_args={"lce": False}
    )
    made = transformers.TimmWrapperForImageClassification(config).eval()
    made.save_pretrained(tmp_path)
    found = load(tmp_path)
    assert found(x).equal(made(x).logits)
    assert found.variant.lce is False
    assert "label_names" not in found.info  # LABEL_0 and so on name nothing
    made.config.id2label = dict(enumerate("abcdefg"))
    made.save_pretrained(tmp_path)
    assert load(tmp_path).info["label_names"] == list("abcdefg")


@torch.no_grad()
def test_a_checkpoint_of_timm_s_training_script(x: Tensor, tmp_path: Path) -> None:
    import argparse

    made = timm.create_model("rmt_nano", num_classes=3).eval()
    ema = timm.utils.ModelEmaV3(made)
    ema.module.head.fc.bias += 1
    saver = CheckpointSaver(
        made,
        torch.optim.SGD(made.parameters(), 0.1),
        args=argparse.Namespace(model="rmt_nano", lr=0.1),
        model_ema=ema,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(0, metric=1.0)
    path = tmp_path / "last.pth.tar"
    assert load(path)(x).equal(ema.module(x))
    assert load(path).info["weights"] == "ema"
    assert load(path, weights="raw")(x).equal(made(x))


def test_the_architecture_decides_where_shapes_do_not(tmp_path: Path) -> None:
    """Decay ranges have no tensors: only config.json tells them."""
    made = rmt.create_model("rmt_nano", 3, decay_max=(5.0, 6.0, 7.0, 8.0))
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    assert load(tmp_path).variant.decay_max != made.variant.decay_max
    about = {"architecture": "rmt_nano", "model_args": {"decay_max": [5, 6, 7, 8]}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    assert load(tmp_path).variant.decay_max == made.variant.decay_max


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("{", r"config\.json is not JSON"),
        ("[1]", r"config\.json is a list of 1; expected a mapping"),
        ({"architecture": "rmt_nano", "model_args": [1]}, r"config\.json: model_args is a list of"),
        ({"architecture": "rmt_nano", "model_args": {"lcee": 1}}, r"unknown option 'lcee'"),
        ({"architecture": "rmt_nano", "label_names": ["a"]}, r"label_names has 1 names for 3"),
        ({"architecture": "rmt_nano", "label_names": 5}, r"label_names is 5; expected a list"),
        ({"architecture": "rmt_nano", "pretrained_cfg": {"std": [0, 0, 0]}}, "greater than 0"),
        ({"architecture": "rmt_s"}, r"≠ head\.fc\.weight|− "),
    ],
)
def test_a_wrong_configuration_beside(about: object, message: str, tmp_path: Path) -> None:
    state = rmt.create_model("rmt_nano", 3).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    text = about if isinstance(about, str) else json.dumps(about)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_the_configuration_of_another_model_is_ignored(model: rmt.RMT, tmp_path: Path) -> None:
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architecture": "resnet50", "num_classes": 1000}')
    assert load(tmp_path).num_classes == 4


def test_our_folder_whose_metadata_was_lost(tmp_path: Path) -> None:
    """Some tools write tensors anew without what they do not know."""
    made = rmt.create_detector("retinanet", "rmt_nano", num_classes=2, min_size=64)
    made.save_pretrained(tmp_path)
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    assert load(tmp_path).config == made.config
