"""Evaluation by nearest neighbours: the vote by hand, and features that separate colours."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rmt
import rmt_cli
from rmt.classification.knn import evaluate_knn, vote
from rmt.classification.recipe import ClassificationRecipe
from rmt.recipes import resolve
from rmt.training.evaluate import evaluate


def test_votes_are_weighted_by_similarity() -> None:
    known = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    labels = torch.tensor([2, 0, 0, 1])
    votes = vote(torch.tensor([[1.0, 0.0]]), known, labels, count=3, classes=4)
    wanted = [math.exp(0.8 / 0.07) + math.exp(0.6 / 0.07), 0, math.exp(1 / 0.07), 0]
    assert votes[0].tolist() == pytest.approx(wanted, rel=1e-5)
    assert votes.argmax() == 2  # a very similar one outvotes two less similar ones


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write noise in three colours, with one damaged file."""
    root = tmp_path_factory.mktemp("data")
    noise = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 3)):
        for channel, name in enumerate(("red", "green", "blue")):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 60, (32, 32, 3), dtype=np.uint8)
                pixels[..., channel] += 180
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    (root / "train" / "red" / "broken.png").write_bytes(b"\x89PNG")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = rmt.create_model("rmt_nano", 7)  # its own classes do not matter
    return rmt.save(model, tmp_path_factory.mktemp("model") / "model.safetensors")


def test_colours_are_separated_without_training(
    folder: Path, weights: Path, tmp_path: Path
) -> None:
    words = ["eval", "--checkpoint", str(weights), "--knn", "5", "--data.root", str(folder)]
    words += ["--data.input_size", "32", "--data.num_workers", "0"]
    assert rmt_cli.main([*words, "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["metrics"] == {"knn_top1": 100.0, "images": 9}
    assert found["data"]["images"] == 9


def test_refusals(folder: Path, weights: Path) -> None:
    model = rmt.load(weights)
    assert isinstance(model, rmt.RMT)
    data = {"root": str(folder), "input_size": 32, "num_workers": 0}
    recipe = resolve(ClassificationRecipe, {"task": "classification", "data": data})
    with pytest.raises(
        ValueError, match="--knn is 25, but the training split has only 24 readable images"
    ):
        evaluate_knn(model, recipe, 25)  # one of them is broken
    assert not model.training
    model.train()
    evaluate_knn(model, recipe, 3)
    assert model.training  # as it was
    with pytest.raises(ValueError, match="--knn is -1; it must be at least 1"):
        evaluate_knn(model, recipe, -1)
    segmenter = rmt.create_segmenter("semantic_fpn", "rmt_nano", 3)
    with pytest.raises(ValueError, match="--knn evaluates the features of a classifier"):
        evaluate(segmenter, knn=5)
