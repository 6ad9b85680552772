"""Transforms, and unreadable images in training, evaluation and prediction."""

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment
from torchvision import transforms
from torchvision.transforms.functional import pil_to_tensor

import rmt
import rmt_cli
from rmt.classification.datamodule import ClassificationData
from rmt.classification.predict import eval_transform
from rmt.classification.recipe import Augment, Data
from rmt.classification.token_labels import CutTransform
from rmt.classification.transforms import eval_transform as eval_transform_of
from rmt.classification.transforms import train_transform
from rmt.data.seeding import seeded
from rmt.training.evaluate import evaluate
from rmt.training.fit import fit, load_recipe

RECIPE = """
task: classification
model: {name: rmt_nano}
data: {format: folder, input_size: 32, batch_size: 8, num_workers: 0, val_fraction: 0.25}
schedule: {epochs: 2}
"""
BAD = "dark/3.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write two classes of twelve images, with a damaged one in the middle of the first."""
    noise = np.random.default_rng(0)
    folder = tmp_path / "images"
    for name, low in (("dark", 0), ("light", 150)):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            pixels = noise.integers(low, low + 105, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    path = folder / BAD
    path.write_bytes(path.read_bytes()[:300])
    return folder


def recipe(folder: Path, *overrides: str):
    path = folder / "recipe.yaml"
    path.write_text(RECIPE)
    return load_recipe(path, [f"--data.root={folder}", *overrides])


@pytest.fixture
def model(folder: Path) -> rmt.RMT:
    """Return a model of these classes."""
    model = rmt.create_model("rmt_nano", 2)
    model.info["label_names"] = ["dark", "light"]
    model.pretrained_cfg |= {"input_size": (3, 32, 32)}
    return model


def test_training_goes_on(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        metrics = fit(recipe(folder), folder.parent / "run")
    named = [r for r in caplog.records if "skipped" in r.message and BAD in r.message]
    left_out = [r for r in caplog.records if "left out" in r.message and BAD in r.message]
    assert len(named) == 1 or left_out  # it is in one of the two splits
    assert len(metrics["history"]) == 2


def test_evaluation_leaves_it_out(
    folder: Path, model: rmt.RMT, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        metrics = evaluate(model, overrides=[f"--data.root={folder}", "--data.num_workers=0"])
    assert metrics["images"] == 23
    assert any(
        "left out of the evaluation" in r.message and BAD in r.message for r in caplog.records
    )


def test_nothing_to_evaluate(folder: Path, model: rmt.RMT) -> None:
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"x")
    with pytest.raises(ValueError, match="none of the images to evaluate can be read"):
        evaluate(model, overrides=[f"--data.root={folder}", "--data.num_workers=0"])


def test_predicting_reports_it_and_goes_on(
    folder: Path, model: rmt.RMT, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rmt.save(model, folder / "x.safetensors")
    words = ["predict", str(folder / "dark"), "--checkpoint", str(path)]
    assert rmt_cli.main([*words, "--json", str(folder / "out.json")]) == 1
    records = json.loads((folder / "out.json").read_text())
    assert len(records) == 12
    bad = [record for record in records if "error" in record]
    assert [record["image"] for record in bad] == [str(folder / BAD)]
    assert bad[0].keys() == {"image", "error"}
    assert "is damaged" in bad[0]["error"]
    assert f"{folder / BAD}  ERROR" in capsys.readouterr().out


def test_a_batch_of_unreadable_images(folder: Path) -> None:
    data = ClassificationData(recipe(folder))
    images, labels, indices = data.eval_collate([None, None])
    assert len(images) == len(labels) == len(indices) == 0
    images, labels, indices = data.eval_collate([None, (torch.ones(3, 4, 4), 2, 7)])
    assert (images.shape, labels.tolist(), indices.tolist()) == ((1, 3, 4, 4), [2], [7])


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    noise = np.random.default_rng(0)
    return Image.fromarray(noise.integers(0, 256, (40, 60, 3), dtype=np.uint8))


AUGMENTS = [
    Augment(),
    Augment(crop="shift"),
    Augment(crop="none", flip=0.5),
    Augment(rand_augment="rand-m9-mstd0.5-inc1", erasing=1.0),
    Augment(crop="shift", rand_augment="rand-m9-mstd0.5-inc1", erasing=1.0),
    Augment(color_jitter=0.4),
    Augment(crop="none", color_jitter=0.4),
]


@pytest.mark.parametrize("augment", AUGMENTS, ids=range(len(AUGMENTS)))
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
def test_training_transforms(picture: Image.Image, augment: Augment, interpolation: str) -> None:
    transform = train_transform(Data(input_size=32, interpolation=interpolation), augment)
    outs = []
    for seed in (1, 1, 2, 3, 4, 5):
        with seeded(seed):
            outs.append(transform(picture))
    assert all(out.shape == (3, 32, 32) and out.dtype == torch.float32 for out in outs)
    assert outs[0].equal(outs[1])
    assert not all(outs[0].equal(out) for out in outs)


def test_every_operation_at_every_strength(picture: Image.Image) -> None:
    """Pillow 13 refuses to keep no bits, which timm asks for at the largest strength."""
    augment = Augment(rand_augment="rand-m9-mstd0.5-inc1")
    for transform in (
        train_transform(Data(input_size=32), augment),
        train_transform(Data(input_size=32), dataclasses.replace(augment, crop="none")),
        transforms.Compose(CutTransform(Data(input_size=32), augment).rest),
    ):
        flat = [p for t in transform.transforms for p in getattr(t, "transforms", [t])]
        (randomly,) = (part for part in flat if isinstance(part, RandAugment))
        for op in randomly.ops:
            op.prob, op.magnitude_std = 1.0, 0.0
            for op.magnitude in (0, 9, 10):
                assert op(picture).size == picture.size
        (coarse,) = (op for op in randomly.ops if op.name.startswith("Posterize"))
        assert coarse(picture).getextrema() == ((0, 0),) * 3  # as in older versions of Pillow


def test_without_any_variation(picture: Image.Image) -> None:
    """Without augmentation, images are only resized and normalised."""
    data = Data(input_size=32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), interpolation="bilinear")
    ours = train_transform(data, Augment(crop="none", flip=0.0))(picture)
    resized = pil_to_tensor(picture.resize((32, 32), Image.Resampling.BILINEAR)).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.mean, data.std))
    assert torch.allclose(ours, (resized - mean) / std, atol=1e-6)


def test_the_release_s_evaluation(picture: Image.Image) -> None:
    """Short side to 256, centre crop of 224, ImageNet's mean and standard deviation."""
    ours = eval_transform_of(Data())(picture)
    resized = picture.resize((384, 256), Image.Resampling.BICUBIC).crop((80, 16, 304, 240))
    mean, std = (torch.tensor(v)[:, None, None] for v in (Data().mean, Data().std))
    assert torch.allclose(ours, (pil_to_tensor(resized).float() / 255 - mean) / std, atol=1e-6)
    assert eval_transform(rmt.create_model("rmt_t"))(picture).equal(ours)
    starred = eval_transform(rmt.create_model("rmt_s", token_labels=True))(picture)
    assert starred.equal(eval_transform_of(Data(crop_pct=0.96))(picture))


def test_what_was_trained_on_travels(folder: Path, picture: Image.Image) -> None:
    wanted = recipe(
        folder, "--data.mean=[0.5,0.5,0.5]", "--data.crop_pct=1.0", "--schedule.epochs=1"
    )
    fit(wanted, folder.parent / "run")
    model = rmt.load(folder.parent / "run")
    assert model.info["label_names"] == ["dark", "light"]
    assert eval_transform(model)(picture).equal(eval_transform_of(wanted.data)(picture))


class TestOtherClasses:
    def test_number(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="the model has 5 classes and the data 2"):
            evaluate(rmt.create_model("rmt_nano", 5), overrides=[f"--data.root={folder}"])

    def test_names(self, folder: Path, model: rmt.RMT) -> None:
        model.info["label_names"] = ["dark", "loud"]
        with pytest.raises(ValueError, match=r"other classes than the data has: .*'loud'.*'light'"):
            evaluate(model, overrides=[f"--data.root={folder}"])

    def test_recipe(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"model\.num_classes is 3 and the data has 2"):
            fit(recipe(folder, "--model.num_classes=3"), folder.parent / "run")

    def test_freeze(self, folder: Path) -> None:
        with pytest.raises(ValueError, match=r"model\.freeze names 'stme\.'"):
            fit(recipe(folder, "--model.freeze=[stme.]"), folder.parent / "run")


def test_fine_tuning_a_frozen_body(folder: Path, model: rmt.RMT) -> None:
    """Another number of classes: a new head on the given body, which is unchanged."""
    three = rmt.create_model("rmt_nano", 3)
    path = rmt.save(three, folder / "three.safetensors")
    words = [f"--model.checkpoint={path}", "--model.freeze=[stem., stages.]", "--schedule.epochs=1"]
    fit(recipe(folder, *words), folder.parent / "run")
    tuned, given = rmt.load(folder.parent / "run"), three.state_dict()
    assert tuned.num_classes == 2
    found = tuned.state_dict()  # with the statistics of the norms
    for name, value in found.items():
        if name.startswith(("stem.", "stages.")):
            assert value.equal(given[name]), name
    for name in ("head.proj.weight", "head.norm.running_mean"):
        assert not found[name].equal(given[name])


@pytest.mark.parametrize("shape", [(1, 1, 32, 32), (1, 4, 32, 32), (3, 32, 32), (2, 32, 32, 3)])
def test_wrong_channels(shape: tuple[int, ...]) -> None:
    model = rmt.create_model("rmt_nano", 2).eval()
    expected = rf"expected images \(B, 3, H, W\), got \({', '.join(map(str, shape))}\)"
    for forward in (model, model.forward_features, model.forward_intermediates):
        with pytest.raises(ValueError, match=expected):
            forward(torch.zeros(shape))
