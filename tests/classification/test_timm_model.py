"""Any classifier of timm as a baseline in the same recipe: trained, evaluated, saved, loaded."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import rmt
import rmt_cli
from rmt.classification.timm_model import TimmClassifier
from rmt.task import get_task
from rmt.training.optim import parameter_groups
from rmt.weights.load import load_body
from tasks import CASES

CASE = CASES["classification"]
TASK = get_task("classification")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return CASE.data(tmp_path_factory.mktemp("photos"), 4)


def test_from_recipe_to_prediction(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = CASE.keys | {"model.name": "test_resnet", "optimizer.layer_decay": 0.5}
    keys |= {"model.freeze": "[network.layer1]", "schedule.epochs": 1, "data.num_workers": 0}
    words = [f"--{key}={value}" for key, value in keys.items()]
    run = tmp_path / "run"
    started = ["train", "small/folder", f"--data.root={photos}", "--out", str(run), *words]
    assert rmt_cli.main([*started, "--trainer.accelerator=cpu"]) == 0
    assert f"small/folder with model.name test_resnet -> {run}" in capsys.readouterr().out
    metrics = json.loads((run / "metrics.json").read_text())
    evaluated = tmp_path / "eval.json"
    assert rmt_cli.main(["eval", "--checkpoint", str(run), "--json", str(evaluated)]) == 0
    assert json.loads(evaluated.read_text())["metrics"] == metrics["test"]
    model = rmt.load(run)
    assert isinstance(model, TimmClassifier)
    assert model.config["architecture"] == "test_resnet"
    converted = tmp_path / "model.safetensors"
    assert rmt_cli.main(["convert", str(run / "checkpoints/best.ckpt"), str(converted)]) == 0
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    first, second = (
        rmt.Predictor.from_checkpoint(path, device="cpu")(image)["top"] for path in (run, converted)
    )
    assert first == second
    assert {entry["name"] for entry in first} == set(CASE.classes)
    assert rmt_cli.main(["explain", str(CASE.images(photos, "val")[0]), f"--checkpoint={run}"]) == 2
    assert "only an RMT has Manhattan attention" in capsys.readouterr().err


def test_models_of_one_size_are_built_for_that_of_the_recipe(photos: Path, tmp_path: Path) -> None:
    recipe = CASE.recipe_for(photos, model__name="test_vit", data__input_size=48)
    model = TASK.new_model(recipe, CASE.classes).eval()
    images = torch.randn(2, 3, 48, 48)
    again = rmt.load(model.save_pretrained(tmp_path / "saved"))
    with torch.inference_mode():
        assert torch.equal(again(images), model(images))
        with pytest.raises(ValueError, match=r"test_vit failed on images of \(1, 48, 48\)"):
            model(images[:, :1])
    assert model.config["model_args"] == {"img_size": 48}


def test_what_does_not_apply_is_refused(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def new(**keys: object) -> TimmClassifier:
        recipe = CASE.recipe_for(photos, **{"model__name": "test_resnet", **keys})
        return TASK.new_model(recipe, CASE.classes)

    with pytest.raises(ValueError, match=r"unknown model 'rmt_nan': neither .*mean 'rmt_nano'"):
        new(model__name="rmt_nan")
    with pytest.raises(ValueError, match="only an RMT has the auxiliary head"):
        new(model__token_labels="true")
    with pytest.raises(ValueError, match=re.escape("timm's vgg11 does not take these options: ")):
        new(model__name="vgg11", model__drop_path_rate=0.1)
    optimizer = CASE.recipe_for(photos, optimizer__layer_decay=0.5).optimizer
    model = new()
    assert len({group["lr_scale"] for group in parameter_groups(model, optimizer)}) > 2
    monkeypatch.delattr(type(model.network), "group_matcher")  # as of one without an order
    with pytest.raises(ValueError, match=r"layer_decay is 0\.5, but only classifiers that order"):
        parameter_groups(model, optimizer)


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_trained_weights_start_another_run(task: str, photos: Path, tmp_path: Path) -> None:
    """With other classes, or as the backbone of a detector."""
    own = CASE.recipe_for(photos, model__name="test_convnext")
    donor = TASK.new_model(own, CASE.classes).save_pretrained(tmp_path / "donor")
    if task == "classification":
        model, prefix = TASK.new_model(own, ["a", "b", "c"]), "network."
    else:
        model = rmt.create_detector("retinanet", "test_convnext", num_classes=2)
        prefix = "backbone.body."
    fresh = load_body(model, donor)
    tensors = rmt.load(donor).state_dict()
    copied = [key for key in model.state_dict() if key not in fresh]
    assert len(copied) > 10
    for key in copied:
        name = key.removeprefix(prefix).replace("stem_", "stem.").replace("stages_", "stages.")
        assert torch.equal(model.state_dict()[key], tensors[f"network.{name}"])
    if task == "classification":
        assert fresh == ["network.head.fc.weight", "network.head.fc.bias"]
        other = TASK.new_model(CASE.recipe_for(photos, model__name="test_resnet"), ["a", "b"])
        with pytest.raises(ValueError, match="does not fit this model's body"):
            load_body(other, donor)
