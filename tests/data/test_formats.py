"""What every data set format of every task promises: one contract, run over all of them."""

from pathlib import Path
from typing import Any

import pytest

import rmt.classification.datasets
import rmt.classification.recipe
import rmt.classification.toy
import rmt.detection.datasets
import rmt.detection.recipe
import rmt.detection.toy
import rmt.segmentation.datasets
import rmt.segmentation.recipe
import rmt.segmentation.toy
from rmt.data.formats import Format, recognise
from rmt.data.splits import Splits

TASKS = {
    "classification": rmt.classification,
    "detection": rmt.detection,
    "segmentation": rmt.segmentation,
}
EVERY = [(task, name) for task, own in TASKS.items() for name in own.datasets.FORMATS]
#: Formats without a file: nothing can be written, or must be.
BUILT_IN = {"digits"}
#: Formats for evaluation alone.
EVAL_ONLY = {"imagenet", "imagenet-real", "imagenet-c"}

every_format = pytest.mark.parametrize(
    ("task", "name"), EVERY, ids=[f"{task}-{name}" for task, name in EVERY]
)


def format_of(task: str, name: str) -> Format:
    return TASKS[task].datasets.FORMATS[name]


@pytest.fixture
def root(task: str, name: str, tmp_path: Path) -> Path | None:
    return TASKS[task].toy.toy(tmp_path / "set", name) if name not in BUILT_IN else None


def opened(task: str, root: Path | None, **keys: Any) -> Splits:
    data = TASKS[task].recipe.Data(root=str(root or ""), **keys)
    return TASKS[task].datasets.open_splits(data)


@every_format
def test_it_is_recognised_by_its_sign_alone(task: str, name: str, root: Path | None) -> None:
    formats = TASKS[task].datasets.FORMATS
    assert formats[name].name == name
    if formats[name].sign is None or root is None:
        return
    assert recognise(root, formats)[0].name == name
    others = {other for other, own in formats.items() if own.sign and own.sign(root)} - {name}
    assert not others or (name, others) == ("imagenet-c", {"folder"})
    assert opened(task, root).sign


@every_format
def test_it_is_read_by_its_name(task: str, name: str, root: Path | None) -> None:
    splits = opened(task, root, format=name)
    assert (splits.train is None) == (name in EVAL_ONLY)
    for samples in filter(None, (splits.train, splits.val, splits.test)):
        assert samples.classes == splits.classes
        assert len(samples)
        image = samples.image(len(samples) - 1)
        assert image.mode == "RGB"
        assert samples.name(0)
    assert splits.format == format_of(task, name).title
    assert splits.describe().startswith(f"{splits.format}, {len(splits.classes)} classes (")
    assert not splits.findings.left_out


@every_format
def test_its_digest_is_of_the_content(task: str, name: str, root: Path | None) -> None:
    splits, again = (opened(task, root, format=name) for _ in range(2))
    assert splits.val.digest() == again.val.digest()
    assert splits.val.take([0]).digest() != splits.val.digest()
    if splits.train is not None:
        assert splits.train.digest() == again.train.digest() != splits.val.digest()


@every_format
def test_all_of_it_may_be_evaluated(task: str, name: str, root: Path | None) -> None:
    splits = opened(task, root, format=name, val_fraction=1.0)
    assert not splits.held_out
    assert len(splits.evaluated)


@pytest.mark.parametrize("task", TASKS)
class TestEveryTask:
    def test_unknown_formats_name_the_nearest(self, task: str, tmp_path: Path) -> None:
        nearest = next(iter(TASKS[task].datasets.FORMATS))
        with pytest.raises(ValueError, match=rf"data\.format is '{nearest}x'.*'{nearest}'"):
            opened(task, tmp_path, format=f"{nearest}x")

    def test_what_looks_like_nothing_is_told_the_layouts(self, task: str, tmp_path: Path) -> None:
        (tmp_path / "notes.md").write_text("x")
        with pytest.raises(ValueError, match="none of the known layouts") as caught:
            opened(task, tmp_path)
        for each in TASKS[task].datasets.FORMATS.values():
            assert each.layout in str(caught.value)
        with pytest.raises(ValueError, match=r"data\.root is empty"):
            opened(task, None)
        with pytest.raises(ValueError, match=r"data\.root '.*gone' does not exist"):
            opened(task, tmp_path / "gone")

    @pytest.mark.parametrize("fraction", [-0.1, 1.1])
    def test_val_fraction_is_a_fraction(self, task: str, fraction: float) -> None:
        with pytest.raises(ValueError, match=rf"data\.val_fraction is {fraction}"):
            TASKS[task].recipe.Data(val_fraction=fraction)

    def test_val_fraction_0(self, task: str, tmp_path: Path) -> None:
        root = undivided(task, tmp_path)
        assert opened(task, TASKS[task].toy.toy(tmp_path / "whole"), val_fraction=0.0).train
        with pytest.raises(ValueError, match=r"data\.val_fraction is 0 and .*no validation split"):
            opened(task, root, val_fraction=0.0)

    def test_an_undivided_set(self, task: str, tmp_path: Path) -> None:
        root = undivided(task, tmp_path)
        everything = opened(task, root, val_fraction=1.0)
        assert everything.train is None
        splits = opened(task, root, val_fraction=0.25)
        assert splits.held_out
        assert "held out of train" in splits.describe()
        # In detection the image without objects is not trained on.
        assert len(splits.train) + len(splits.val) >= len(everything.val) - 1

    @pytest.mark.parametrize(
        "words",
        [
            ("Train", "Val", "Test"),
            ("training", "validation", "testing"),
            ("TRAINING_SET", "dev", "Test_Set"),
            ("train2017", "Valid", "test2017"),
            ("trn", "eval", "tst"),
        ],
    )
    def test_splits_are_called_alike(
        self, task: str, words: tuple[str, str, str], tmp_path: Path
    ) -> None:
        root = TASKS[task].toy.toy(tmp_path / "set")
        expected = opened(task, root)
        rename_splits(root, dict(zip(("train", "val"), words, strict=False)))
        found = opened(task, root)
        assert len(found.train) == len(expected.train)
        assert len(found.val) == len(expected.val)
        assert found.classes == expected.classes
        assert not found.findings.left_out
        rename_splits(root, {words[1]: words[2]})
        found = opened(task, root, val_fraction=0.5)
        assert len(found.test) == len(expected.val)
        assert found.held_out


def undivided(task: str, root: Path) -> Path:
    """Write a data set without splits."""
    made = TASKS[task].toy.toy(root / "undivided")
    rename_splits(made, {"val": ".val"})
    for folder in [path for path in made.rglob("train") if path.is_dir()]:
        for path in folder.iterdir():
            path.rename(folder.parent / path.name)
        folder.rmdir()
    rename_splits(made, {"train": "all"})
    return made


def rename_splits(root: Path, names: dict[str, str]) -> None:
    """Rename the folders and files that are called as a split."""
    for path in sorted(root.rglob("*"), reverse=True):  # what is in a folder comes first
        if path.stem in names:
            path.rename(path.with_name(names[path.stem] + path.suffix))
