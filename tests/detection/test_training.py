"""Train, evaluate, predict and resume through the functions behind the command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rmt import recipes
from rmt.data.images import read_image
from rmt.detection import Detector, create_detector
from rmt.detection.coco import to_mask
from rmt.detection.metrics import categories_of
from rmt.detection.recipe import Data
from rmt.detection.sources import open_splits
from rmt.detection.toy import SHAPES, toy
from rmt.tools import report
from rmt.tools.predict import Predictor, predict_files
from rmt.training.dry_run import dry_run
from rmt.training.fit import fit, load_recipe
from rmt.weights.load import load

COCO = [name for name in recipes.list_recipes() if name.startswith("coco/")]


def tiny(root: Path, **keys: Any) -> Any:
    """Return a recipe of a few seconds on a toy set."""
    keys = {
        "data.root": root,
        "model.backbone": "rmt_nano",
        "model.min_size": 64,
        "model.max_size": 96,
        "model.roi_samples_per_image": 16,
        "augment.min_sizes": [48, 64],
        "data.batch_size": 2,
        "data.num_workers": 0,
        "schedule.epochs": 2,
        "schedule.warmup_steps": 2,
        "ema.decay": 0,
        "trainer.evaluate_every": 2,
        "trainer.accelerator": "cpu",
        **keys,
    }
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    return load_recipe("small/detection", words)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy(tmp_path_factory.mktemp("toy"), images=3)


@pytest.fixture(scope="module", params=["retinanet", "mask_rcnn"])
def run(
    request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("run")
    return out, fit(tiny(root, **{"model.head": request.param}), out)


def test_fit_keeps_everything(run: tuple[Path, dict[str, Any]]) -> None:
    out, metrics = run
    assert metrics == json.loads((out / "metrics.json").read_text())
    model = load(out)
    assert isinstance(model, Detector)
    assert {"box_AP", "box_AP50", "box_AP/disc", "images"} <= set(metrics["test"])
    assert ("mask_AP50" in metrics["test"]) == model.has_masks
    assert metrics["test"]["images"] == 3
    assert model.info["label_names"] == list(SHAPES)


def test_report(run: tuple[Path, dict[str, Any]]) -> None:
    shown = report.write(run[0])
    assert {"predictions.png", "precision_recall.png"} <= set(shown)
    assert all((run[0] / "report" / name).stat().st_size > 0 for name in shown)


def test_predict_files(run: tuple[Path, dict[str, Any]], root: Path, tmp_path: Path) -> None:
    photos = sorted((root / "images" / "val").glob("*.png"))[:2]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    records = list(predict_files([*photos, broken], run[0], out=tmp_path / "out", score=0.0))
    json.dumps(records)
    assert [record["image"] for record in records] == [str(p) for p in (*photos, broken)]
    assert "broken.png" in records[2]["error"]
    for photo, record in zip(photos, records[:2], strict=True):
        height, width = record["size"]
        assert read_image(photo).size == (width, height)
        assert record["detections"]
        for entry in record["detections"]:
            assert SHAPES[entry["label"]] == entry["name"]
            x0, y0, x1, y1 = entry["box"]
            assert 0 <= x0 <= x1 <= width + 1e-3
            assert 0 <= y0 <= y1 <= height + 1e-3
            if "mask" in entry:
                assert to_mask(entry["mask"], height, width).shape == (height, width)
        assert read_image(tmp_path / "out" / f"{photo.stem}.png").size == (width, height)


def test_predictor_obeys_the_score(run: tuple[Path, dict[str, Any]]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    model = load(run[0])
    all_of_them = Predictor(model, score=0.0)(image)["detections"]
    scores = [entry["score"] for entry in all_of_them]
    middle = scores[len(scores) // 2]
    better = Predictor(model, score=middle)(image)["detections"]
    assert [entry["score"] for entry in better] == [s for s in scores if s > middle]
    with pytest.raises(ValueError, match=r"score is 1\.5"):
        Predictor(model, score=1.5)


def test_labels_find_their_categories_by_name(root: Path) -> None:
    samples = open_splits(Data(root=str(root))).val
    model = create_detector("retinanet", "rmt_nano", num_classes=2)
    assert categories_of(model, samples) == (1, 2)
    model.info["label_names"] = ["square", "disc"]
    assert categories_of(model, samples) == (2, 1)
    with pytest.raises(ValueError, match="3 classes and the data 2"):
        categories_of(create_detector("retinanet", "rmt_nano", num_classes=3), samples)


def test_twelve_recipes() -> None:
    assert len(COCO) == 12


@pytest.mark.parametrize("name", COCO)
def test_recipe_is_the_row(name: str) -> None:
    recipe = load_recipe(name)
    _, head_and_size, schedule = name.rpartition("/")[2], *name.rpartition("/")[2].rsplit("_", 1)
    head, _, size = head_and_size.partition("_rmt_")
    assert (recipe.model.head, recipe.model.backbone) == (head, f"rmt_{size}")
    assert recipe.schedule.epochs == {"1x": 12, "3x": 36}[schedule]
    assert recipe.schedule.milestones == {"1x": (8, 11), "3x": (27, 33)}[schedule]
    assert recipe.optimizer.weight_decay == (1e-4 if head == "retinanet" else 0.05)
    assert (recipe.model.min_size, recipe.model.max_size) == (800, 1333)
    assert recipe.published.numbers["box_AP"] > 45
    text = (recipes.FOLDER / f"{name}.yaml").read_text()
    assert len(text.splitlines()) <= 32


def test_plan_without_data() -> None:
    described = dry_run("coco/retinanet_rmt_t_1x", ["--model.backbone", "rmt_nano"])
    assert described["epochs"] == 12
    assert described["recipe"]["model"]["head"] == "retinanet"
