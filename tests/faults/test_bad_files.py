"""Bad files end in a message, whoever wrote them: no traceback, no waiting, no file elsewhere."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import rmt
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
from faults_mutations import damaged, many, of_safetensors, spoiled
from limits import memory_limit, time_limit
from rmt import recipes
from rmt.modeling.pretrained import Pretrained
from rmt.recipes.schema import Recipe
from rmt.task import get_task
from tasks import CASES

#: How many inputs are tried: a few in each run of the tests, more in the slow ones.
few_and_many = pytest.mark.parametrize(
    "factor", [1, pytest.param(30, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
# Small: the first error of a kind may import a library.
MEMORY = 1500


def create(task: str) -> Pretrained:
    if task == "classification":
        return rmt.create_model("rmt_nano", num_classes=3)
    if task == "detection":
        return rmt.create_detector("retinanet", "rmt_nano", num_classes=2, min_size=64, max_size=96)
    return rmt.create_segmenter("semantic_fpn", "rmt_nano", num_classes=3)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folder of a small model of each task."""
    folders = {task: tmp_path_factory.mktemp("models") / task for task in CASES}
    for task, folder in folders.items():
        create(task).save_pretrained(folder)
    return folders


@contextmanager
def untouched(*folders: Path) -> Iterator[None]:
    """Fail if anything in these folders is written, made or deleted."""

    def seen() -> dict[str, tuple[int, int]]:
        found = (path for folder in folders for path in folder.rglob("*"))
        return {str(p): (s.st_size, s.st_mtime_ns) for p in found for s in [p.lstat()]}

    before = seen()
    yield
    assert seen() == before


def handled(run: Callable[[], Any]) -> bool:
    """Return whether something ended well; if not, it must have said why, in a message of ours."""
    error: Exception | None = None
    with time_limit(20):
        try:
            run()
        except (ValueError, OSError) as raised:
            error = raised
    if error is None:
        return True
    words = str(error)
    assert len(words) > 10, repr(error)
    assert not any(bad in words for bad in ("Traceback", "'NoneType' object", "has no attr")), words
    assert not isinstance(error, UnicodeError | json.JSONDecodeError | yaml.YAMLError), words
    return False


# Images


def bomb() -> bytes:
    """Return a PNG of few bytes that says that it has 3.6 billion pixels."""
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    return bytes(content)


def write_bad_images(folder: Path) -> set[str]:
    """Write images of which none can be read; return their names."""
    folder.mkdir()
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    whole = file.getvalue()
    contents = {
        "empty.png": b"",
        "cut.png": whole[: len(whole) // 2],
        "head.png": whole[:20],
        "text.jpg": b"not an image",
        "bomb.png": bomb(),
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "\x1b[2Jescape.png": b"x",
        os.fsdecode(b"latin-\xe9.png"): b"x",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    Image.new("L", (1, 5000)).save(folder / "line.png")
    (folder / "dangling.png").symlink_to("gone.png")
    (folder / "circle.png").symlink_to("circle.png")
    os.mkfifo(folder / "pipe.png")
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("task", CASES)
def test_bad_images_are_named_one_by_one(
    task: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write_bad_images(tmp_path / "in")
    Image.new("RGB", (64, 48), "red").save(tmp_path / "in" / "good.png")
    checkpoint, out = models[task], tmp_path / "out"
    words = ["predict", str(tmp_path / "in"), "--checkpoint", str(checkpoint), "--out", str(out)]
    with untouched(tmp_path / "in", checkpoint), memory_limit(MEMORY), time_limit(60):
        status = rmt_cli.main([*words, "--json", str(out / "found.json")])
    assert status == 1
    records = json.loads((out / "found.json").read_text())
    errors = {Path(record["image"]).name: record.get("error") for record in records}
    assert errors.pop("good.png") is None
    assert errors.keys() == bad
    assert all(errors.values())
    assert {path.stem.removesuffix("_labels") for path in out.iterdir()} <= {"good", "found"}
    assert "\x1b" not in capsys.readouterr().out


# Checkpoints


def parts_of(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Return the header and the tensors of a safetensors file."""
    content = (folder / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@few_and_many
@pytest.mark.parametrize("task", CASES)
def test_checkpoints_whose_description_is_changed(
    task: str, factor: int, models: dict[str, Path], tmp_path: Path
) -> None:
    header, data = parts_of(models[task])
    said = json.loads(header["__metadata__"]["rmt"])
    path = tmp_path / "x.safetensors"
    outcomes: list[bool] = []

    def check(draw: random.Random) -> None:
        text = json.dumps(spoiled(said, draw))
        changed = header | {"__metadata__": {"rmt": text}}
        path.write_bytes(of_safetensors(changed, data))
        outcomes.append(handled(lambda: rmt.load(path)))

    with memory_limit(MEMORY):
        many(12 * factor, check)
    assert not all(outcomes)


@few_and_many
def test_checkpoints_whose_bytes_are_changed(
    factor: int, models: dict[str, Path], tmp_path: Path
) -> None:
    model = create("classification")
    torch.save(model.state_dict(), tmp_path / "x.pth")
    written = {
        ".safetensors": (models["classification"] / "model.safetensors").read_bytes(),
        ".pth": (tmp_path / "x.pth").read_bytes(),
    }

    def check(draw: random.Random) -> None:
        suffix = draw.choice(list(written))
        whole = written[suffix]
        # Most bytes are weights, of which any value is good: the heads and tails are of interest.
        head = draw.random() < 0.7
        part = whole[:8000] if head else whole[-8000:]
        changed = damaged(part, draw)
        path = tmp_path / f"x{suffix}"
        path.write_bytes(changed + whole[8000:] if head else whole[:-8000] + changed)
        handled(lambda: rmt.load(path))

    with memory_limit(MEMORY):
        many(30 * factor, check)


@few_and_many
def test_pickles_that_hold_something_else(factor: int, tmp_path: Path) -> None:
    state: dict[str, Any] = dict(create("classification").state_dict())
    whole = {
        "state_dict": state,
        "meta": {"CLASSES": ["a", "b", "c"], "PALETTE": [[0, 0, 0]]},
        "epoch": 3,
        "args": {"lr": 0.1},
    }
    odd = [torch.zeros(0), torch.zeros(3), torch.full((2, 2), torch.nan), torch.ones(2).bool()]

    def check(draw: random.Random) -> None:
        content = spoiled({key: whole[key] for key in whole if draw.random() < 0.7}, draw)
        if isinstance(content, dict) and draw.random() < 0.5:
            own = content.get("state_dict", content)
            if isinstance(own, dict) and own:
                own[draw.choice(list(own))] = draw.choice(odd)
        torch.save(content, tmp_path / "x.pth")
        assert not handled(lambda: rmt.load(tmp_path / "x.pth")) or "state_dict" in content

    with memory_limit(MEMORY):
        many(20 * factor, check)


def test_the_command_says_what_is_wrong(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    header, data = parts_of(models["segmentation"])
    contents = {
        "empty.safetensors": b"",
        "cut.safetensors": of_safetensors(header, data[:100]),
        "deep.safetensors": of_safetensors(header | {"__metadata__": {"rmt": "[" * 10**5}}, data),
        "text.pth": b"nonsense",
        "\x1b[2J.pth": b"nonsense",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        for verb in (
            ["predict", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--checkpoint"],
            ["eval", "--data.root", str(tmp_path), "--checkpoint"],
            ["explain", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--checkpoint"],
            ["convert"],
        ):
            more = [str(tmp_path / "out.safetensors")] if verb == ["convert"] else []
            assert rmt_cli.main([*verb, str(tmp_path / name), *more]) == 2, name
            said = capsys.readouterr().err
            assert said.startswith("rmt: ")
            assert said.count("\n") <= 3
            assert "\x1b" not in said
    assert not (tmp_path / "out.safetensors").exists()
    assert not list((tmp_path / "out").rglob("*.*"))


# Data sets


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
