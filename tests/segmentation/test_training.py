"""Train, evaluate, predict and resume through the functions that the command calls."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rmt import recipes
from rmt.segmentation import create_segmenter
from rmt.segmentation.classes import colours
from rmt.segmentation.datamodule import SegmentationData
from rmt.segmentation.overlay import draw_overlay
from rmt.segmentation.plots import draw
from rmt.segmentation.predict import label_names
from rmt.segmentation.recipe import SegmentationRecipe
from rmt.segmentation.toy import SHAPES, toy
from rmt.tools.predict import Predictor, predict_files
from rmt.training.dry_run import dry_run
from rmt.training.evaluate import evaluate
from rmt.training.fit import fit, load_recipe
from rmt.training.optim import learning_rate
from rmt.weights.load import load

ADE20K = [name for name in recipes.list_recipes() if name.startswith("ade20k/")]


def tiny(root: Path, **keys: Any) -> Any:
    """Return a recipe of a few seconds on a toy set."""
    keys = {
        "data.root": root,
        "model.backbone": "rmt_nano",
        "model.channels": 16,
        "data.crop": 48,
        "data.batch_size": 4,
        "data.num_workers": 0,
        "schedule.epochs": 4,
        "schedule.warmup_epochs": 1,
        "trainer.evaluate_every": 2,
        "trainer.accelerator": "cpu",
        **keys,
    }
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    return load_recipe("small/segmentation", words)


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy(tmp_path_factory.mktemp("toy"), images=9)


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("run")
    return out, fit(tiny(root), out)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Return a set whose validation part has an empty image and a mask of another size."""
    root = toy(tmp_path / "broken", images=9)
    (root / "images" / "val" / "val_0.jpg").write_bytes(b"")
    Image.new("L", (5, 5)).save(root / "masks" / "val" / "val_8.png")
    return root


def test_eval_counts_what_it_read(run: tuple[Path, dict[str, Any]], broken: Path) -> None:
    words = ["--data.root", str(broken)]
    assert evaluate(run[0], overrides=words)["images"] == 7
    for mask in (broken / "masks" / "val").iterdir():
        mask.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the images to evaluate can be read"):
        evaluate(run[0], overrides=words)


def test_a_validation_split_is_enough_to_evaluate_but_not_to_train(
    run: tuple[Path, dict[str, Any]],
    root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One class has no labels, and a warning says so."""
    own = tmp_path / "own"
    shutil.copytree(root, own, ignore=shutil.ignore_patterns("train"))
    for mask in (own / "masks" / "val").iterdir():
        Image.fromarray(pixels(mask) % 2).save(mask)  # no square
    with caplog.at_level(logging.WARNING):
        evaluate(run[0], overrides=["--data.root", str(own)])
    assert "1 of 3 classes have no labelled pixel in the evaluated images" in caplog.text
    assert caplog.text.rstrip().endswith("do not cover them: square")
    with pytest.raises(ValueError, match="has no training images, only images to evaluate"):
        fit(tiny(own), tmp_path / "run")


def test_plots_leave_out_unreadable_images(
    run: tuple[Path, dict[str, Any]], broken: Path, tmp_path: Path
) -> None:
    """Two of nine images, in two of six stretches, the second alone in its own."""
    assert draw(load(run[0]), tiny(broken), tmp_path).keys() == {"predictions.png"}
    for photo in (broken / "images" / "val").iterdir():
        photo.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the images can be read"):
        draw(load(run[0]), tiny(broken), tmp_path)


def test_predict_files(run: tuple[Path, dict[str, Any]], root: Path, tmp_path: Path) -> None:
    photos = sorted((root / "images" / "val").glob("*.jpg"))[:2]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not an image")
    dot = tmp_path / "dot.png"
    Image.new("L", (1, 1)).save(dot)
    records = list(predict_files([*photos, broken, dot], run[0], out=tmp_path / "out"))
    json.dumps(records)
    assert [record["image"] for record in records] == [str(p) for p in (*photos, broken, dot)]
    assert "broken.jpg" in records[2]["error"]
    for photo, record in zip((*photos, dot), (*records[:2], records[3]), strict=True):
        height, width = record["size"]
        labels = pixels(record["labels_png"])
        assert labels.shape == (height, width) == pixels(photo).shape[:2]
        assert sum(found["pixels"] for found in record["classes"].values()) == labels.size
        for name, found in record["classes"].items():
            assert SHAPES[found["label"]] == name
            assert (labels == found["label"]).sum() == found["pixels"]
            assert found["share"] == pytest.approx(found["pixels"] / labels.size, abs=1e-6)
        assert len(pixels(tmp_path / "out" / f"{photo.stem}.png")) > height


def test_predictor_options(run: tuple[Path, dict[str, Any]]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    plain = Predictor.from_checkpoint(run[0])(image)
    assert plain["labels"].shape == (50, 70)
    options = {"window": 32, "stride": 16, "scales": (0.75, 1.0), "flip": True}
    assert Predictor.from_checkpoint(run[0], **options)(image)["labels"].shape == (50, 70)
    with pytest.raises(ValueError, match=r"'widow' is not an option .*did you mean 'window'"):
        Predictor.from_checkpoint(run[0], widow=32)


def test_equal_names_are_told_apart() -> None:
    model = create_segmenter("semantic_fpn", "rmt_nano", 3, channels=8)
    model.info["label_names"] = ["ground", "thing", "thing"]
    assert label_names(model) == ["ground", "thing (1)", "thing (2)"]


def test_names_in_a_legend_are_not_formulas(tmp_path: Path) -> None:
    labels = np.zeros((20, 30), dtype=np.uint8)
    path = tmp_path / "overlay.png"
    draw_overlay(Image.new("RGB", (30, 20)), labels, path, names=["$a_{$"], palette=colours(1))
    assert pixels(path).shape[1] == 320


@pytest.mark.parametrize("name", ADE20K)
def test_ade20k_recipes(name: str) -> None:
    recipe = recipes.resolve(SegmentationRecipe, recipes.read(name))
    head, size = name.removeprefix("ade20k/").split("_rmt_")
    assert (recipe.model.head, recipe.model.backbone) == (head, f"rmt_{size}")
    assert recipe.data.crop == 512
    assert recipe.trainer.global_batch_size == recipe.optimizer.reference_batch_size == 16
    assert (recipe.inference.min_size, recipe.inference.max_size, recipe.inference.window) == (
        512,
        2048,
        0,
    )
    assert recipe.schedule.steps == {"semantic_fpn": 80_000, "upernet": 160_000}[head]
    assert recipe.optimizer.lr == {"semantic_fpn": 1e-4, "upernet": 6e-5}[head]
    assert recipe.published.numbers["mIoU"] > 46


def test_seven_rows_are_published() -> None:
    assert len(ADE20K) == 7


def test_ade20k_recipe_trains_on_its_layout(tmp_path: Path) -> None:
    """Two steps of a published recipe, made small, counted in steps and evaluated at the end."""
    toy(tmp_path / "data", "ade20k", images=2)
    keys = {
        "data.root": tmp_path / "data",
        "model.backbone": "rmt_nano",
        "model.channels": 8,
        "data.crop": 64,
        "trainer.global_batch_size": 2,
        "data.num_workers": 0,
        "inference.min_size": 64,
        "schedule.steps": 2,
        "schedule.warmup_steps": 1,
        "trainer.evaluate_every": 2,
        "trainer.accelerator": "cpu",
    }
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    metrics = fit(load_recipe("ade20k/upernet_rmt_s", words), tmp_path / "run")
    assert metrics["history"][-1]["step"] == 2
    assert np.isfinite(metrics["test"]["mIoU"])


def test_rates_of_the_published_schedules() -> None:
    """By hand from mmcv's rules: the warm-up climbs to the falling curve."""
    fpn = recipes.resolve(SegmentationRecipe, recipes.read("ade20k/semantic_fpn_rmt_s")).schedule
    uper = recipes.resolve(SegmentationRecipe, recipes.read("ade20k/upernet_rmt_s")).schedule
    assert learning_rate(fpn, 1e-4, 0, 1) == 1e-4
    assert learning_rate(fpn, 1e-4, 40_000, 1) == pytest.approx(1e-6 + 99e-6 * 0.5**0.9)
    assert learning_rate(fpn, 1e-4, 80_000, 1) == pytest.approx(1e-6)
    assert learning_rate(uper, 6e-5, 0, 1) == pytest.approx(6e-11)
    falling = 6e-5 * (1 - 750 / 160_000)
    assert learning_rate(uper, 6e-5, 750, 1) == pytest.approx(falling * (1 - 0.5 * (1 - 1e-6)))
    assert learning_rate(uper, 6e-5, 80_000, 1) == pytest.approx(3e-5)


def test_dry_run_of_a_published_recipe() -> None:
    described = dry_run("ade20k/semantic_fpn_rmt_s")
    assert described["steps"] == 80_000
    assert described["batch"] == 16
    assert round(described["params"] / 1e6) == 30


def test_a_batch_without_labels_warns(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    stack = SegmentationData(tiny(root)).train_collate
    ignored = torch.full((4, 4), 255, dtype=torch.uint8)
    labelled = torch.zeros(4, 4, dtype=torch.uint8)
    image = torch.zeros(3, 4, 4)
    with caplog.at_level(logging.WARNING):
        stack([(image, ignored), (image, labelled)])
        assert not caplog.messages
        stack([(image, ignored), (image, ignored)])
    assert "a training batch has no labelled pixel" in caplog.text


def test_repeats_lengthen_an_epoch(root: Path) -> None:
    data = SegmentationData(tiny(root, **{"data.repeats": 3}))
    assert len(data.train_loader()) == 3 * 9 // 4
