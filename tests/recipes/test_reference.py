"""The reference of the recipe keys is the schema, and the title of a run is that of its model."""

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import rmt_cli
from rmt.recipes import reference
from rmt.task import TASKS, get_task
from rmt.tools.reference import page
from rmt.training.data_record import DataRecord
from rmt.training.fit import load_recipe
from rmt.training.run_folder import RunFolder
from tasks import CASES, Case

PAGE = Path(__file__).parents[2] / "docs" / "keys.md"


def fields_of(kind: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of a recipe's fields."""
    for name, hint in typing.get_type_hints(kind).items():
        if typing.get_origin(hint) is typing.ClassVar:
            continue
        if dataclasses.is_dataclass(hint):
            yield from fields_of(hint, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_the_page_is_that_of_the_schema() -> None:
    assert PAGE.read_text() == page(), "run python -m rmt.tools.reference > docs/keys.md"


@pytest.mark.parametrize("task", TASKS)
def test_every_key_has_a_line(task: str) -> None:
    found = {key.path: key for key in reference.keys(get_task(task).recipe)}
    assert set(found) == set(fields_of(get_task(task).recipe))
    assert all(key.meaning.endswith(".") for key in found.values())
    listed = set(re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(), flags=re.M))
    assert set(found) <= listed


def test_a_key_states_its_values_and_its_default() -> None:
    found = {key.path: key for key in reference.keys(get_task("classification").recipe)}
    assert found["optimizer.betas"].values == "2 numbers, at least 0 and less than 1"
    assert found["optimizer.betas"].default == (0.9, 0.999)
    assert found["model.num_classes"].values == "whole number or null, at least 1"
    assert found["augment.crop"].values == "random, shift or none"
    assert found["data.repeats"].meaning.startswith("repeated augmentation (arXiv 1901.09335)")


def test_the_command_explains_the_keys_of_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert rmt_cli.main(["train", "small/detection", "--help-keys", "--optimizer.lr", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "--optimizer.lr 0.5   (number, greater than 0; default 0.001)" in lines
    keys = {line.split()[0].removeprefix("--") for line in lines if line.startswith("--")}
    assert keys == set(fields_of(get_task("detection").recipe))
    assert rmt_cli.main(["train", "--help-keys"]) == 2


@pytest.mark.parametrize("task", CASES)
def test_a_changed_model_is_in_the_title(task: str) -> None:
    recipe = CASES[task].recipe
    key = "name" if task == "classification" else "backbone"
    words = [f"--model.{key}", "rmt_nano", "--optimizer.lr", "1"]
    assert load_recipe(recipe, words).title == f"{recipe} with model.{key} rmt_nano"
    assert load_recipe(recipe, words[2:]).title == load_recipe(recipe).title
    assert load_recipe(recipe, [*words, "--title", "Mine"]).title == "Mine"


def test_published_numbers_do_not_belong_to_another_model() -> None:
    assert load_recipe("imagenet/rmt_s", ["--seed=1"]).published.numbers
    assert not load_recipe("imagenet/rmt_s", ["--model.name=rmt_t"]).published.numbers


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_relative_root_is_found_from_another_folder(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.data(tmp_path / "here" / "photos")
    monkeypatch.chdir(tmp_path / "here")
    recipe = case.recipe_for(Path("photos"))
    splits = get_task(case.task).training().open_data(recipe).splits
    RunFolder(tmp_path / "run").commit(recipe, DataRecord.of(splits, recipe.data.root))
    own = tmp_path / "run" / "recipe.yaml"
    assert load_recipe(own).data.root == "photos"
    monkeypatch.chdir(tmp_path)
    assert load_recipe(own).data.root == str(tmp_path / "here" / "photos")
    assert load_recipe(own, ["--data.root", "other"]).data.root == "other"
    (tmp_path / "here").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"data\.root 'photos' does not exist; .*--data\.root DIR"):
        get_task(case.task).training().open_data(load_recipe(own))
