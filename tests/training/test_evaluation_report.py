"""`rmt eval --report`: plots, a page, and a table of the images with the worst first."""

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rmt
import rmt_cli
from rmt.classification.evaluation import BINS
from rmt.detection.evaluation import _inside, _matched
from rmt.task import get_task
from tasks import CASES, Case

PLOTS = {
    "classification": {"confusion.png", "reliability.png", "precision_recall.png", "doubted.png"},
    "detection": {"precision_recall.png", "worst.png"},
    "segmentation": {"confusion.png", "iou.png", "worst.png"},
}


@pytest.fixture(scope="module", params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def report(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the report of a randomly initialised model; beside it lie the model and the data."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(case.task)
    root = case.data(folder / "data")
    model = get_task(case.task).new_model(case.recipe_for(root), case.classes)
    model.save_pretrained(folder / "model")
    words = ["eval", "--checkpoint", folder / "model", "--report", folder / "report"]
    words += ["--data.root", root, "--trainer.accelerator", "cpu", "--data.num_workers", 0]
    if case.task == "segmentation":
        words += ["--data.crop", 48, "--inference.min_size", 48]
    assert rmt_cli.main([str(word) for word in [*words, "--json", folder / "eval.json"]]) == 0
    return folder / "report"


def table(report: Path) -> list[dict[str, Any]]:
    with (report / "images.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_files(case: Case, report: Path) -> None:
    plots = PLOTS[case.task]
    assert {path.name for path in report.iterdir()} == plots | {
        "index.html",
        "images.csv",
        "metrics.json",
    }
    record = json.loads((report.parent / "eval.json").read_text())
    assert json.loads((report / "metrics.json").read_text()) == record
    page = (report / "index.html").read_text()
    for name in plots:
        assert f'<img src="{name}"' in page
        with Image.open(report / name) as image:
            assert np.asarray(image).std() > 1  # something is drawn
    images = case.images(report.parent / "data", "val")
    assert len(table(report)) == record["metrics"]["images"] == len(images)
    assert {row["image"] for row in table(report)} == {str(path) for path in images}


def test_the_table(case: Case, report: Path) -> None:
    rows = table(report)
    metrics = json.loads((report / "metrics.json").read_text())["metrics"]
    if case.task == "classification":
        own = [float(row["label_score"]) for row in rows]
        assert own == sorted(own)
        assert [float(row["loss"]) for row in rows] == pytest.approx(-np.log(own), abs=1e-3)
        right = [row["label"] == row["predicted"] for row in rows]
        assert 100 * np.mean(right) == pytest.approx(metrics["top1"])
        predictor = rmt.Predictor.from_checkpoint(report.parent / "model", device="cpu")
        page = (report / "index.html").read_text()
        assert f"calibration error is {calibration(rows):.1f} %" in page
        assert {top["name"] for top in predictor(rows[0]["image"])["top"]} == set(case.classes)
    elif case.task == "detection":
        mistakes = [int(row["missed"]) + int(row["false"]) for row in rows]
        assert mistakes == sorted(mistakes, reverse=True)
        listing = next((report.parent / "data" / "annotations").glob("val*.json"))
        objects = sum(int(row["objects"]) for row in rows)
        annotated = json.loads(listing.read_text())["annotations"]
        assert objects == sum(not entry["iscrowd"] for entry in annotated) < len(annotated)
    else:
        accuracy = [float(row["accuracy"]) for row in rows]
        assert accuracy == sorted(accuracy)
        wrong, labelled = (
            sum(int(row[name]) for row in rows) for name in ("wrong_pixels", "labelled_pixels")
        )
        assert 100 * (1 - wrong / labelled) == pytest.approx(metrics["aAcc"], abs=1e-3)


def calibration(rows: list[dict[str, Any]]) -> float:
    """Return the expected calibration error in percent, bin by bin."""
    score = np.array([float(row["score"]) for row in rows])
    right = np.array([row["label"] == row["predicted"] for row in rows])
    edges = np.linspace(0, 1, BINS + 1)
    error = 0.0
    for low, high in pairwise(edges):
        inside = (score > low) & (score <= high)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - score[inside].mean())
    return 100 * error


def test_each_object_is_taken_once() -> None:
    objects = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    boxes = torch.tensor([[0.0, 0, 10, 9], [0, 0, 9, 10], [20, 20, 30, 30], [20, 20, 24, 24]])
    labels = torch.tensor([0, 0, 1, 1])
    matched = _matched(boxes, labels, objects, torch.tensor([0, 1]))
    assert matched.tolist() == [True, False, True, False]
    assert not _matched(boxes, labels, objects, torch.tensor([1, 0])).any()
    none = torch.tensor([], dtype=torch.long)
    assert not _matched(boxes, labels, objects[:0], none).any()
    assert not _matched(boxes[:0], labels[:0], objects, torch.tensor([0, 1])).any()


def test_what_lies_in_a_crowd_is_not_false() -> None:
    crowd, own = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([0])
    boxes = torch.tensor([[2.0, 2, 4, 4], [8, 0, 12, 4], [9, 0, 13, 4], [2, 2, 4, 4]])
    found = _inside(boxes, torch.tensor([0, 0, 0, 1]), crowd, own)
    assert found.tolist() == [True, True, False, False]
    assert not _inside(boxes, torch.zeros(4, dtype=torch.long), crowd[:0], own[:0]).any()


def test_a_report_of_neighbours_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "--checkpoint", "x", "--knn", "3", "--report", str(tmp_path)]
    assert rmt_cli.main(words) == 2
    assert "which --knn does not use" in capsys.readouterr().err
