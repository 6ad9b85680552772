"""An unreadable sample: named and counted once over passes, copies and processes, in every task."""

import importlib
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rmt.data.bad_samples import EvalReader, TrainReader, readable, spread_readable
from rmt.data.loaders import SeededSamples, make_loader
from rmt.data.samplers import TrainBatches
from rmt.task import get_task
from rmt.training.fit import load_recipe

COUNT = 12


class Read:
    """Sample i is (i,); some cannot be read."""

    def __init__(self, *bad: int) -> None:
        self.bad = bad

    def __call__(self, index: int) -> tuple[int]:
        if index in self.bad:
            raise (FileNotFoundError if index % 2 else ValueError)(f"file {index}")
        return (index,)


def same(index: int) -> int:
    return index


def reader(*bad: int, max_bad_samples: int) -> TrainReader:
    return TrainReader(Read(*bad), same, count=COUNT, max_bad_samples=max_bad_samples)


def test_the_next_one_stands_in(caplog: pytest.LogCaptureFixture) -> None:
    read = reader(3, 4, 11, max_bad_samples=3)
    for _ in range(3):  # passes: each is one unreadable sample, named once
        assert [read(i) for i in (2, 3, 4, 11)] == [2, 5, 5, 0]
        assert read(3 + COUNT) == 5  # a copy of the same sample
    assert caplog.messages == ["skipped: file 3", "skipped: file 4", "skipped: file 11"]


def test_too_many() -> None:
    read = reader(3, 7, max_bad_samples=1)
    assert read(3) == 4
    with pytest.raises(ValueError, match=r"more than data\.max_bad_samples=1 .* last one: file 7"):
        read(7)


def test_none_at_all() -> None:
    with pytest.raises(ValueError, match="no training sample can be read"):
        reader(*range(COUNT), max_bad_samples=COUNT)(0)


def test_a_mistake_in_augmenting_is_not_a_damaged_file() -> None:
    def augment(index: int) -> None:
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match=r"^a mistake$"):
        TrainReader(Read(), augment, count=COUNT, max_bad_samples=100)(0)


def test_evaluation_leaves_out(caplog: pytest.LogCaptureFixture) -> None:
    read = EvalReader(Read(2), count=COUNT, max_bad_samples=1)
    assert readable([read(i) for i in range(4)]) == [(0,), (1,), (3,)]
    assert caplog.messages == ["left out of the evaluation: file 2"]
    assert read(2) is None  # again, in the next evaluation: it counts once
    strict = EvalReader(Read(1, 2), count=COUNT, max_bad_samples=1)
    assert strict(1) is None
    with pytest.raises(ValueError, match=r"more than data\.max_bad_samples=1 samples .* file 2"):
        strict(2)


@pytest.mark.parametrize("limit", [1, 2])
def test_loading_processes_count_together(limit: int) -> None:
    """Each of two processes meets one of the two: alone, neither would reach the limit."""
    batches = TrainBatches(COUNT, 1, seed=0)
    order = [index for ((_, index, _),) in batches]
    read = reader(order[0], order[1], max_bad_samples=limit)
    loader = make_loader(
        SeededSamples(range(COUNT), read, seed=0), batches, num_workers=2, collate=list
    )
    if limit == 1:
        with pytest.raises(ValueError, match=r"data\.max_bad_samples=1"):
            list(loader)
    else:
        for _ in range(2):
            assert len(list(loader)) == COUNT
        assert read.bad.flags.sum() == 2


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_every_task_reads_so(task: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two training images are damaged; three passes, or copies of all, name each once."""
    words = [f"--data.root={tmp_path}", "--data.num_workers=0", "--data.batch_size=1"]
    if task == "classification":
        for name in ("train/a", "train/b", "val/a", "val/b"):
            (tmp_path / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / name / f"{name[-1]}{i}.png")
        words += ["--model.name=rmt_nano", "--data.input_size=32"]
    else:
        importlib.import_module(f"rmt.{task}.toy").toy(tmp_path, images=8)
        words += ["--model.backbone=rmt_nano", "--data.repeats=2"]
    images = sorted(
        p for p in tmp_path.rglob("*.[pj][np]g") if "train" in str(p) and "mask" not in str(p)
    )
    for path in images[1:3]:
        path.write_bytes(path.read_bytes()[:40])
    name = "small/folder" if task == "classification" else f"small/{task}"

    def pass_over(*more: str) -> None:
        recipe = load_recipe(name, [*words, *more])
        loader: Any = get_task(task).training().open_data(recipe).train_loader()
        for _ in range(3):
            assert len(list(loader)) >= len(images)

    with caplog.at_level(logging.WARNING):
        pass_over("--data.max_bad_samples=2")
    skipped = [message for message in caplog.messages if message.startswith("skipped")]
    assert len(skipped) == 2
    assert all(any(path.name in m for m in skipped) for path in images[1:3])
    with pytest.raises(ValueError, match=r"more than data\.max_bad_samples=1 samples"):
        pass_over("--data.max_bad_samples=1")


def test_some_of_many_are_spread_and_readable() -> None:
    """Three of twelve: the first readable one of each third."""
    assert spread_readable(Read(0, 4, 5), COUNT, 3) == [(1, (1,)), (6, (6,)), (8, (8,))]
    assert spread_readable(Read(), 2, 3) == [(0, (0,)), (1, (1,))]
    with pytest.raises(ValueError, match="none of the images can be read"):
        spread_readable(Read(*range(COUNT)), COUNT, 3)
