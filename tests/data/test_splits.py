"""What splits are called, and what is held out: the same for every task."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import pytest
from PIL import Image

from rmt.data.findings import Findings
from rmt.data.splits import Splits, divide, hold_out, sort_by_split, split_of


@dataclass(frozen=True)
class Numbers:
    """Samples that are numbers."""

    items: Sequence[int]
    classes: tuple[str, ...] = ("a", "b")

    def __len__(self) -> int:
        return len(self.items)

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (1, 1))

    def name(self, index: int) -> str:
        return str(self.items[index])

    def digest(self) -> str:
        return str(self.items)

    def label(self, index: int) -> object:
        return self.items[index] % 2

    def take(self, indices: Sequence[int]) -> Self:
        return replace(self, items=[self.items[i] for i in indices])

    def join(self, other: Self) -> Self:
        return replace(self, items=[*self.items, *other.items])


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train Train TRAINING training_set train-sets train2017 TrainImages trainval"),
        ("val", "val Valid validation VALIDATION_DATA dev eval val2017 devset"),
        ("test", "test Testing test_set test-images TEST"),
        (None, "cat trained contest value latest device train_station my_test_tube default"),
    ],
)
def test_names(split: str | None, names: str) -> None:
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("instances_val2017", "val"),
        ("train-00000-of-00294.parquet", "train"),
        ("imagenet1k-validation-07.tar", "val"),
        ("Testing/0.tar", "test"),
        ("train/test.tar", "train"),  # the outer folder decides
        ("instances_default", None),
    ],
)
def test_names_within_a_text(text: str, split: str | None) -> None:
    assert split_of(text, within=True) == split


def test_the_usual_name_comes_first() -> None:
    named = [("trainval", 0), ("Training", 1), ("train", 2), ("validation", 3), ("valid", 4)]
    found, others = sort_by_split([*named, ("photos", 5)])
    assert found == {"train": 2, "val": 4}
    assert list(found) == ["train", "val"]
    assert others == [0, 1, 3, 5]
    assert sort_by_split([("trainval", 0)])[0] == {"train": 0}


def test_given_splits_are_kept() -> None:
    train, val, test = (Numbers([i]) for i in range(3))
    assert divide({"train": train, "val": val, "test": test}, 0.5, where="x") == Splits(
        train, val, test
    )
    assert divide({"train": train, "val": val}, 1, where="x") == Splits(train, val)
    assert divide({"val": val}, 0.5, where="x") == Splits(None, val)
    alone = divide({"test": test}, 0.5, where="x")
    assert alone.train is None
    assert alone.evaluated is test


def test_val_fraction_1_evaluates_everything() -> None:
    everything = Numbers(range(10))
    assert divide({"train": everything}, 1, where="x") == Splits(None, everything)


def test_val_fraction_0_leaves_nobody_to_choose() -> None:
    train, val = Numbers(range(10)), Numbers([1])
    assert divide({"train": train, "val": val}, 0, where="x").train is train
    with pytest.raises(ValueError, match=r"val_fraction is 0 and x has no validation split.*0\.1"):
        divide({"train": train}, 0, where="x")


@pytest.mark.parametrize(("count", "fraction", "held"), [(10, 0.1, 1), (10, 0.01, 1), (7, 0.5, 4)])
def test_the_same_images_are_held_out(count: int, fraction: float, held: int) -> None:
    """Measurements depend on the choice: it must stay what it is."""
    train, val = hold_out(Numbers(range(count)), fraction, where="x")
    order = list(range(count))
    random.Random(0).shuffle(order)
    assert val.items == sorted(order[:held])
    assert sorted([*train.items, *val.items]) == list(range(count))


def test_a_share_of_each_class_is_held_out() -> None:
    labels = [0] * 20 + [1] * 10
    train, val = hold_out(Numbers(range(30)), 0.2, where="x", labels=labels)
    assert [labels[i] for i in val.items].count(1) == 2
    assert len(train) == 24
    assert divide({"train": Numbers(range(30))}, 0.2, where="x", labels=lambda _: labels).held_out


def test_too_few_images() -> None:
    with pytest.raises(ValueError, match="x has 1 images; too few"):
        hold_out(Numbers([0]), 0.5, where="x")
    with pytest.raises(ValueError, match="class 'b' has one image only"):
        hold_out(Numbers(range(4)), 0.5, where="x", labels=[0, 0, 0, 1])
    with pytest.raises(ValueError, match="x holds no images"):
        divide({}, 0.5, where="x")


def test_the_description() -> None:
    findings = Findings(limit=3)
    splits = Splits(Numbers(range(8)), Numbers([0, 1]), format="COCO", sign="a.json")
    splits = replace(splits, findings=findings, held_out=True)
    assert splits.describe() == (
        "COCO, 2 classes (a, b), 8 train / 2 val images (val held out of train); "
        "recognised by a.json"
    )
    findings.note("crowd|crowds", count=2)
    findings.fault("absent image|absent images", "x.jpg")
    findings.fault("absent image|absent images", "y.jpg")
    findings.fault("broken file|broken files", "z.xml")
    assert splits.describe().endswith(
        "2 crowds, 3 left out: 2 absent images (x.jpg, ...); 1 broken file (z.xml); "
        "recognised by a.json"
    )
    with pytest.raises(ValueError, match=r"more than data\.max_bad_samples=3 .*2 absent images"):
        findings.fault("broken file|broken files", "w.xml")
    whole = Splits(None, Numbers([1]), Numbers([2, 3], classes=("a", "b")))
    assert whole.describe() == "2 classes (a, b), 1 val / 2 test images, none to train on"


def test_each_image_is_in_one_part() -> None:
    """And each part has its share of each class."""
    labels = [0] * 17 + [1] * 6
    held = []
    for fold in range(5):
        splits = divide(
            {"train": Numbers(range(23))}, 0.1, where="x", labels=lambda _: labels, part=(fold, 5)
        )
        assert splits.held_out
        assert splits.train is not None
        assert sorted([*splits.train.items, *splits.val.items]) == list(range(23))
        assert [labels[i] for i in splits.val.items].count(1) in (1, 2)
        held += splits.val.items
    assert sorted(held) == list(range(23))


def test_parts_need_images() -> None:
    train, val = Numbers(range(3)), Numbers([3])
    with pytest.raises(ValueError, match=r"x has 3 images; too few for data\.folds 4"):
        divide({"train": train}, 0.1, where="x", part=(0, 4))
    # A model that was trained on one part may be evaluated on data with splits.
    assert divide({"train": train, "val": val}, 0.1, where="x", part=(0, 2)).val is val
