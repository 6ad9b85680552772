"""Recipes: shipped ones resolve, mistakes are named, and no field is without effect."""

import dataclasses
import importlib
import re
import shutil
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import rmt
from rmt.classification.datasets import open_splits
from rmt.classification.recipe import ClassificationRecipe, Data
from rmt.recipes import FOLDER, as_dict, list_recipes, read, resolve
from rmt.task import get_task
from rmt.tools import report
from rmt.training import dry_run as plan
from rmt.training.fit import fit, load_recipe
from rmt.training.optim import learning_rate

TASKS = ("classification", "detection", "segmentation")


@pytest.mark.parametrize("name", list_recipes())
def test_shipped(name: str) -> None:
    recipe = load_recipe(name)
    text = (FOLDER / f"{name}.yaml").read_text()
    assert len(text.splitlines()) <= 30
    assert text.startswith("# ")
    assert "# Run: " in text or "#   rmt train" in text
    assert recipe.title
    if not text.startswith("# Ours"):
        assert recipe.published.source
        assert recipe.published.numbers
    again = resolve(type(recipe), yaml.safe_load(yaml.safe_dump(as_dict(recipe))))
    assert again == recipe


def make(**content: Any) -> ClassificationRecipe:
    return resolve(ClassificationRecipe, {"task": "classification", **content})


class TestResolving:
    def test_words_of_the_command(self) -> None:
        words = ["--data.batch_size", "3", "--data.mean=[0.1,0.2,0.3]", "--trainer.compile", "true"]
        words += ["--model.freeze", "[stem., head.]", "--data.root=a=b", "--trainer.devices=auto"]
        words += ["--token-labels.mix", "0.5"]
        recipe = resolve(ClassificationRecipe, {"task": "classification"}, words)
        assert recipe.data.batch_size == 3
        assert recipe.data.mean == (0.1, 0.2, 0.3)
        assert recipe.trainer.compile is True
        assert recipe.model.freeze == ("stem.", "head.")
        assert recipe.data.root == "a=b"
        assert recipe.trainer.devices == "auto"
        assert recipe.token_labels.mix == 0.5
        assert isinstance(recipe.optimizer.lr, float)

    def test_the_content_is_left_alone(self) -> None:
        content = {"task": "classification", "data": {"batch_size": 3}}
        resolve(ClassificationRecipe, content, ["--data.batch_size", "5"])
        assert content == {"task": "classification", "data": {"batch_size": 3}}

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ({"optimzer": {}}, "unknown recipe key 'optimzer'; did you mean 'optimizer'?"),
            ({"data": {"bach": 1}}, "unknown recipe key 'data.bach'; did you mean 'batch_size'?"),
            ({"data": {"batch_size": "many"}}, "data.batch_size"),
            ({"data": {"batch_size": 1.5}}, "data.batch_size"),
            ({"data": {"mean": [1, 2]}}, "data.mean"),
            (
                {"data": 3},
                "recipe key 'data' is 3, but it is a section: give its keys, such as data.",
            ),
            ({"data": {"key": "x"}}, "unknown recipe key 'data.key'"),
            ({"data": {"balance": None}}, "recipe key 'data.balance' is null; give a value"),
            ({"data": {"mean": [0, 10**400, 0]}}, "data.mean is too large a number"),
            ({"ema": {"decay": "1" * 400}}, "ema.decay is too large a number"),
            ({"augment": {"crop": "centre"}}, "augment.crop"),
            ({"trainer": {"compile": "perhaps"}}, "trainer.compile"),
        ],
    )
    def test_mistakes(self, content: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=re.escape(words)):
            make(**content)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["data.batch_size", "3"], r"expected --key\.sub value, got 'data\.batch_size'"),
            (["--data.batch_size"], r"--data\.batch_size has no value"),
            (["--seed.x", "3"], "seed is a value, not a section"),
        ],
    )
    def test_invalid_arguments(self, words: list[str], message: str) -> None:
        content = {"task": "classification", "seed": 1}
        with pytest.raises(ValueError, match=message):
            resolve(ClassificationRecipe, content, words)


class TestReading:
    def test_not_a_yaml_file(self, tmp_path: Path) -> None:
        (tmp_path / "x.yaml").write_text("a: [")
        with pytest.raises(ValueError, match=r"x\.yaml is not YAML"):
            read(tmp_path / "x.yaml")

    @pytest.mark.parametrize("text", ["", "- a", "model: {}"])
    def test_not_a_recipe(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ValueError, match="must be a mapping with the key 'task'"):
            read(tmp_path / "x.yaml")

    def test_unknown_task(self, tmp_path: Path) -> None:
        (tmp_path / "x.yaml").write_text("task: tracking")
        with pytest.raises(ValueError, match=r"unknown task 'tracking' \(known: classification"):
            load_recipe(tmp_path / "x.yaml")


# Every field has an effect.


def records(kind: type) -> Iterator[type]:
    """Return a recipe's record and those within it."""
    yield kind
    for hint in typing.get_type_hints(kind).values():
        if dataclasses.is_dataclass(hint):
            yield from records(hint)


@pytest.mark.slow
def test_every_field_is_read(tmp_path: Path) -> None:
    """The package's code reads every field in some run; what copies a record does not count."""
    seen: set[tuple[type, str]] = set()
    source = str(Path(rmt.__file__).parent)

    def watch(kind: type) -> Any:
        def getattribute(self: Any, name: str) -> Any:
            file = sys._getframe(1).f_code.co_filename
            if file.startswith(source) and "recipes" not in Path(file).parts:
                seen.add((kind, name))
            return object.__getattribute__(self, name)

        return getattribute

    kinds = {kind for task in TASKS for kind in records(get_task(task).recipe)}
    with pytest.MonkeyPatch.context() as patch:
        for kind in kinds:
            patch.setattr(kind, "__getattribute__", watch(kind), raising=False)
        for task in TASKS:
            exercise(task, tmp_path / task)
    unused = sorted(
        f"{kind.__module__}.{kind.__name__}.{field.name}"
        for kind in kinds
        for field in dataclasses.fields(kind)
        if (kind, field.name) not in seen
    )
    assert unused == []


def exercise(task: str, folder: Path) -> None:
    """Run everything that reads recipes, as small as possible."""
    data = folder / "data"
    words = [
        "--schedule.epochs=1",
        "--data.num_workers=0",
        "--data.batch_size=4",
        "--data.folds=2",
        "--data.fold=1",
        f"--data.root={data}",
    ]
    words += [
        "--trainer.accelerator=cpu",
        "--trainer.early_stopping_patience=1",
        "--trainer.early_stopping_max_lr=1",
        "--trainer.save_every=1",
    ]
    words += [
        "--ema.decay=0.5",
        "--ema.reference_batch_size=8",
        "--optimizer.reference_batch_size=8",
    ]
    if task == "classification":
        for name, colour in (("dark", 0), ("light", 200)):
            (data / name).mkdir(parents=True)
            for i in range(4):
                pixels = np.full((8, 8, 3), colour + i, np.uint8)
                Image.fromarray(pixels).save(data / name / f"{i}.png")
        teacher = rmt.save(rmt.create_model("rmt_nano", 2), folder / "teacher.safetensors")
        words += ["--model.name=rmt_nano", "--data.input_size=32", "--augment.rand_augment="]
        words += ["--model.token_labels=true", "--token_labels.teacher=rmt_nano"]
        words += [f"--token_labels.weights={teacher}", "--augment.mixup=0.1"]
        with pytest.raises(ValueError, match="name a folder to download"):
            open_splits(Data(format="fashion-mnist", download=True))
    else:
        importlib.import_module(f"rmt.{task}.toy").toy(data, images=4)
        words += ["--model.backbone=rmt_nano"]
        for part in sorted(data.rglob("*val*")):  # so that a part must be held out
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
    if task == "detection":
        words += ["--model.min_size=64", "--model.max_size=96", "--augment.min_sizes=[64]"]
        words += ["--augment.crop=1", "--augment.brightness=0.1", "--model.head=mask_rcnn"]
    if task == "segmentation":
        words += [
            "--model.channels=16",
            "--data.crop=32",
            "--inference.window=32",
            "--inference.stride=16",
        ]
    name = "small/folder" if task == "classification" else f"small/{task}"
    recipe = load_recipe(name, words)
    fit(recipe, folder / "run")
    fit(recipe, folder / "run", resume=True)
    report.write(folder / "run")
    plan.show(plan.dry_run(name, words))
    for shape in ("cosine", "poly", "step", "constant"):
        schedule = dataclasses.replace(recipe.schedule, name=shape, milestones=(1,))
        for by_epoch in (False, True):
            learning_rate(dataclasses.replace(schedule, by_epoch=by_epoch), 1.0, 3, 2)
