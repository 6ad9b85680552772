"""RESULTS.md agrees with the recipes and the measurements."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rmt import recipes
from rmt.classification.recipe import ClassificationRecipe

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(**changes: Any) -> dict[str, Any]:
    recipe = recipes.as_dict(recipes.resolve(ClassificationRecipe, recipes.read("imagenet/rmt_s")))
    return {
        "checkpoint": {"path": "my weights.pth", "weights": "ema", "sha256": "ab" * 32},
        "data": {"root": "imagenet", "images": 50000, "sha256": "cd" * 32},
        "metrics": {"top1": 84.06, "top5": 96.9, "images": 50000.0},
        "date": "2026-01-02",
        "machine": "x86_64, CPU",
        "knn": 0,
        "overrides": ["--data.root", "imagenet"],
        "recipe": recipe,
        "versions": {"torch": "2.11"},
    } | changes


def test_a_measured_number_stands_beside_the_published_one(
    results: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "rmt_s.json").write_text(json.dumps(record()))
    lines = results.evaluated([tmp_path / "rmt_s.json"])
    assert "| model | record | images | measured top1 | published top1 | measured top5 |" in lines
    assert "| RMT-S on ImageNet-1K | `rmt_s.json` | 50000 | 84.06 | 84.1 | 96.9 |" in lines
    words = "rmt eval --checkpoint 'my weights.pth' --weights ema --data.root imagenet"
    assert sum(words in line for line in lines) == 1


def test_neighbours_are_named(results: ModuleType) -> None:
    words = record(knn=20, overrides=[])
    assert results.command(words).endswith("--weights ema --knn 20")


def test_the_page_is_up_to_date(results: ModuleType) -> None:
    assert (ROOT / "RESULTS.md").read_text() == results.page()
