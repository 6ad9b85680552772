"""The learning-rate finder, on every task."""

from pathlib import Path

import pytest

import rmt_cli
from rmt.training.find_lr import find_lr
from tasks import CASES, Case


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rates_grow_and_the_picture_is_drawn(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = case.keys | {"data.root": case.data(tmp_path / "data", 6), "data.num_workers": 0}
    keys |= {"trainer.accelerator": "cpu", "optimizer.reference_batch_size": 4}
    words = [f"--{key}={value}" for key, value in keys.items()]
    assert rmt_cli.main(["train", case.recipe, "--find-lr", "12", *words]) == 0
    assert "curve      runs/" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"data", "runs"}
    assert [path.name for path in (tmp_path / "runs" / case.recipe).iterdir()] == ["find_lr.png"]


def test_the_suggestion_is_for_the_batch_size_of_the_recipe(tmp_path: Path) -> None:
    case = CASES["classification"]
    keys = {"optimizer__reference_batch_size": 8, "schedule__epochs": 0, "schedule__steps": 3}
    recipe = case.recipe_for(case.data(tmp_path, 6), **keys)
    found = find_lr(recipe, steps=12)
    assert len(found.rates) == len(found.losses) > 10
    assert found.rates == sorted(found.rates)
    if found.suggested is not None:
        assert found.suggested in found.rates
        assert found.lr == pytest.approx(found.suggested * 8 / 2)
    with pytest.raises(ValueError, match="--find-lr is 3; it must be at least 10"):
        find_lr(recipe, steps=3)
