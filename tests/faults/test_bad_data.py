"""Data sets that were changed at random end in a message, and nothing outside of them is read."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

import rmt.classification.datasets
import rmt.classification.recipe
import rmt.classification.toy
import rmt.detection.datasets
import rmt.detection.recipe
import rmt.detection.toy
import rmt.segmentation.datasets
import rmt.segmentation.recipe
import rmt.segmentation.toy
import rmt_cli
from faults_mutations import MEMORY, damaged, few_and_many, handled, many, spoiled, untouched
from limits import memory_limit
from rmt import recipes
from rmt.recipes.schema import Recipe
from rmt.task import get_task
from tasks import CASES


def try_all(splits: Any) -> None:
    """Read the first samples of each split as training and evaluation do, bad ones aside."""
    for samples in (splits.train, splits.val):
        for index in range(min(3, len(samples or ()))):
            try:
                samples.image(index)
                if hasattr(samples, "target"):
                    samples.target(index, masks=False)
            except (ValueError, FileNotFoundError):
                continue


def open_data(task: Any, root: Path) -> None:
    try_all(task.datasets.open_splits(task.recipe.Data(root=str(root))))


@few_and_many
def test_changed_json(factor: int, tmp_path: Path) -> None:
    """COCO's form; nothing outside of the data set is read."""
    root = rmt.detection.toy.toy(tmp_path / "set", images=2)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    path = root / "annotations" / "train.json"
    whole = json.loads(path.read_text())
    whole["annotations"] = whole["annotations"][:3]

    def check(draw: random.Random) -> None:
        path.write_text(json.dumps(spoiled(whole, draw)))
        handled(lambda: open_data(rmt.detection, root))
        out = tmp_path / f"out{draw.random()}"
        to = draw.choice(["coco", "voc", "yolo"])
        with untouched(root):
            status = rmt_cli.main(["convert-dataset", str(root), str(out), "--to", to])
        assert status in (0, 2)
        names = {each.name for each in out.rglob("*")}
        assert not names & {"secret.png", "hostname"}

    with memory_limit(MEMORY):
        many(20 * factor, check)


@few_and_many
def test_changed_xml_and_labels(factor: int, tmp_path: Path) -> None:
    roots = {
        name: rmt.detection.toy.toy(tmp_path / name, name, images=2) for name in ("voc", "yolo")
    }
    files = [next(roots["voc"].rglob("train*.xml")), next(roots["yolo"].rglob("labels/train/*"))]
    contents = {path: path.read_bytes() for path in files}

    def check(draw: random.Random) -> None:
        for path, content in contents.items():
            path.write_bytes(damaged(content, draw))
        for root in roots.values():
            handled(lambda root=root: open_data(rmt.detection, root))

    with memory_limit(MEMORY):
        many(15 * factor, check)


@few_and_many
def test_changed_yaml(factor: int, tmp_path: Path) -> None:
    root = rmt.detection.toy.toy(tmp_path, "yolo", images=2)
    path = root / "data.yaml"
    whole = yaml.safe_load(path.read_text())
    whole |= {"path": ".", "nc": 2, "kpt_shape": [3, 2]}
    text = yaml.safe_dump(whole).encode()

    def check(draw: random.Random) -> None:
        if draw.random() < 0.5:
            content = damaged(text, draw)
        else:
            content = yaml.safe_dump(spoiled(whole, draw)).encode("utf-8", "surrogatepass")
        path.write_bytes(content)
        handled(lambda: open_data(rmt.detection, root))

    with memory_limit(MEMORY):
        many(30 * factor, check)


@few_and_many
@pytest.mark.parametrize("task", CASES)
def test_changed_recipes(task: str, factor: int, tmp_path: Path) -> None:
    case = CASES[task]
    kind: type[Recipe] = get_task(task).recipe
    whole = recipes.as_dict(recipes.resolve(kind, recipes.read(case.recipe)))
    path = tmp_path / "recipe.yaml"

    def check(draw: random.Random) -> None:
        text = yaml.safe_dump(spoiled(whole, draw, most=1)).encode("utf-8", "surrogatepass")
        path.write_bytes(damaged(text, draw) if draw.random() < 0.2 else text)
        handled(lambda: recipes.resolve(kind, recipes.read(path)))

    many(15 * factor, check)


@few_and_many
def test_changed_tar_files(factor: int, tmp_path: Path) -> None:
    root = rmt.classification.toy.toy(tmp_path, "webdataset", images=2)
    shards = sorted(root.glob("*.tar"))
    contents = [path.read_bytes() for path in shards]
    listed = {"splits": {"train": {"filenames": [shards[0].name], "shard_lengths": [6]}}}
    index = root / ".rmt-by_key.json"
    open_data(rmt.classification, root)
    known = json.loads(index.read_text())

    def check(draw: random.Random) -> None:
        for path, content in zip(shards, contents, strict=True):
            changed = damaged(content[:6000], draw) + content[6000:]
            path.write_bytes(changed if draw.random() < 0.5 else content)
        index.unlink(missing_ok=True)
        if draw.random() < 0.3:
            index.write_text(json.dumps(spoiled(known, draw)))
        info = root / "_info.json"
        info.unlink(missing_ok=True)
        if draw.random() < 0.3:
            info.write_text(json.dumps(spoiled(listed, draw)))
        handled(lambda: open_data(rmt.classification, root))

    with memory_limit(MEMORY):
        many(25 * factor, check)


@few_and_many
def test_changed_tables(factor: int, tmp_path: Path) -> None:
    file = rmt.classification.toy.toy(tmp_path, "csv", images=2)
    whole = file.read_bytes()
    odd = (b'"', b"\0", b",,,", b"../../../etc/hostname", b"\xff\xfe", b"x" * 200_000, b"\r", b";")

    def check(draw: random.Random) -> None:
        at = draw.randrange(len(whole))
        new = damaged(whole, draw) if draw.random() < 0.5 else whole[:at] + draw.choice(odd)
        file.write_bytes(new if draw.random() < 0.5 else new + whole[at:])
        handled(lambda: open_data(rmt.classification, file))

    with memory_limit(MEMORY):
        many(25 * factor, check)


def test_a_long_field_of_a_table(tmp_path: Path) -> None:
    file = rmt.classification.toy.toy(tmp_path, "csv", images=2)
    file.write_text(f"{file.read_text()}{'x' * 200_000},blue,train\n")
    with pytest.raises(ValueError, match=r"images\.csv is not a CSV file: field larger than"):
        open_data(rmt.classification, file)


@few_and_many
def test_changed_masks_and_class_lists(factor: int, tmp_path: Path) -> None:
    root = rmt.segmentation.toy.toy(tmp_path, images=2)
    mask = next((root / "masks" / "train").iterdir())
    files = {path: path.read_bytes() for path in (mask, root / "classes.txt")}

    def check(draw: random.Random) -> None:
        for path, content in files.items():
            path.write_bytes(damaged(content, draw))

        def read() -> None:
            data = rmt.segmentation.recipe.Data(root=str(root))
            splits = rmt.segmentation.datasets.open_splits(data)
            for index in range(len(splits.train)):
                splits.train.read(index)

        handled(read)

    with memory_limit(MEMORY):
        many(25 * factor, check)


PIPES = {
    "folder": (rmt.classification, "train/blue/pipe.png"),
    "webdataset": (rmt.classification, "train-pipe.tar"),
    "parquet": (rmt.classification, "data/train-pipe.parquet"),
    "coco": (rmt.detection, "annotations/pipe.json"),
    "yolo": (rmt.detection, "images/train/pipe.png"),
    "voc": (rmt.detection, "train/a.xml"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", PIPES)
def test_pipes_are_not_waited_for(name: str, tmp_path: Path) -> None:
    task, place = PIPES[name]
    root = task.toy.toy(tmp_path, name)
    os.mkfifo(root / place)
    if handled(lambda: open_data(task, root)):
        return
    os.remove(root / place)
    open_data(task, root)  # it was the pipe


@pytest.mark.timeout(60)
def test_pipes_among_masks_and_lists(tmp_path: Path) -> None:
    for place in ("masks/train/pipe.png", "images/train/pipe.jpg"):
        root = rmt.segmentation.toy.toy(tmp_path / place.replace("/", "-"))
        os.mkfifo(root / place)
        open_data(rmt.segmentation, root)
    root = rmt.detection.toy.toy(tmp_path / "yolo", "yolo")
    (root / "data.yaml").unlink()
    os.mkfifo(root / "data.yaml")
    with pytest.raises(ValueError, match="expected a text file"):
        open_data(rmt.detection, root)


def test_names_that_no_tar_should_hold(tmp_path: Path) -> None:
    """Members are read in place: no name leads anywhere."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    with tarfile.open(tmp_path / "train.tar", "w") as archive:
        for name in ("../../x/1.png", "/etc/y/2.png", "a\n/3.png", "z/" * 90 + "4.png"):
            info = tarfile.TarInfo(name)
            info.size = len(file.getvalue())
            archive.addfile(info, io.BytesIO(file.getvalue()))
        link = tarfile.TarInfo("a/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    data = rmt.classification.recipe.Data(root=str(tmp_path), val_fraction=1.0)
    splits = rmt.classification.datasets.open_splits(data)
    assert {path.name for path in tmp_path.iterdir()} == {"train.tar", ".rmt-by_folder.json"}
    assert len(splits.val) == 4
    assert all(splits.val.image(i).size == (8, 8) for i in range(4))
