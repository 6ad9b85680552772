"""Tar files, webdataset shards and Parquet files hold what class folders do, image by image."""

import io
import json
import logging
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rmt.classification.datasets import open_splits, parquet
from rmt.classification.datasets.members import Member, members
from rmt.classification.recipe import Data
from rmt.classification.samples import Samples
from rmt.classification.token_labels import LabelMaps
from rmt.data.bad_samples import EvalReader, TrainReader
from rmt.data.loaders import SeededSamples, make_loader
from rmt.data.samplers import EvalBatches, TrainBatches
from rmt.data.splits import Splits
from rmt.training.fit import fit, load_recipe

CLASSES = ("cat", "dog", "train")  # a class may be called so
COUNTS = {"train": 6, "val": 2}

Files = Iterable[tuple[str, bytes]]
Write = Callable[[Path], Path]


def jpeg(part: str, name: str, number: int) -> bytes:
    """Return a picture that differs from all others."""
    noise = np.random.default_rng([len(part), CLASSES.index(name), number])
    file = io.BytesIO()
    Image.fromarray(noise.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def images(part: str) -> list[tuple[str, str, bytes]]:
    """Return class, name and content of each image of a part."""
    return [
        (name, f"{name}_{i}", jpeg(part, name, i)) for name in CLASSES for i in range(COUNTS[part])
    ]


def tar(path: Path, files: Files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def folders(root: Path) -> Path:
    for part in COUNTS:
        for name, file, content in images(part):
            path = root / part / name / f"{file}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


def tar_of_a_class(root: Path) -> Path:
    for part in COUNTS:
        for name in CLASSES:
            own = [(f"./{file}.jpg", data) for c, file, data in images(part) if c == name]
            tar(root / part / f"{name}.tar", own)
    return root


def tar_with_folders(root: Path) -> Path:
    for part in COUNTS:
        tar(root / f"{part}.tar", [(f"{part}/{c}/{f}.jpg", data) for c, f, data in images(part)])
    return root


def tar_of_tars(root: Path) -> Path:
    inside = tar_of_a_class(root / ".inside")
    for part in COUNTS:
        inner = sorted((inside / part).glob("*.tar"))
        tar(root / f"ILSVRC_{part}.tar", [(path.name, path.read_bytes()) for path in inner])
    return root


def keyed(found: Iterable[tuple[str, str, bytes]], *, as_json: bool = False) -> Files:
    for name, file, data in found:
        number = CLASSES.index(name)
        yield f"{file}.jpg", data
        if as_json:
            yield f"{file}.json", json.dumps({"label": number}).encode()
        else:
            yield f"{file}.cls", str(number).encode()


def shards(root: Path) -> Path:
    """Write shards of seven samples as webdataset names them."""
    for part in COUNTS:
        found = images(part)
        for start in range(0, len(found), 7):
            tar(root / f"set-{part}-{start // 7:06}.tar", keyed(found[start : start + 7]))
    (root / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    return root


def shards_in_folders(root: Path) -> Path:
    for part in COUNTS:
        tar(root / part / "0.tar", keyed(images(part), as_json=True))
    (root / "classnames.txt").write_text("\n".join(CLASSES))
    return root


def parquets(root: Path) -> Path:
    """Write two files a part in row groups of four, with Hugging Face's description."""
    import pyarrow
    from pyarrow.parquet import write_table

    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(CLASSES), "_type": "ClassLabel"},
    }
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    (root / "data").mkdir(parents=True)
    for part in (*COUNTS, "test"):
        found = images("val" if part == "test" else part)
        for at, rows in enumerate((found[::2], found[1::2])):
            image = [{"bytes": data, "path": f"{file}.jpg"} for _, file, data in rows]
            label = [-1 if part == "test" else CLASSES.index(name) for name, _, _ in rows]
            table = pyarrow.table({"image": image, "label": label}).replace_schema_metadata(about)
            name = "validation" if part == "val" else part
            path = root / "data" / f"{name}-0000{at}-of-00002.parquet"
            write_table(table, path, row_group_size=4)
    return root


LAYOUTS = {
    "tar of a class": ("tar", tar_of_a_class),
    "tar with folders": ("tar", tar_with_folders),
    "tar of tars": ("tar", tar_of_tars),
    "shards": ("webdataset", shards),
    "shards in folders": ("webdataset", shards_in_folders),
    "parquet": ("parquet", parquets),
}
every_layout = pytest.mark.parametrize(("kind", "write"), LAYOUTS.values(), ids=LAYOUTS)


def content(samples: Samples) -> dict[bytes, str]:
    """Return the class of each picture."""
    read = (samples.read(i) for i in range(len(samples)))
    return {picture.tobytes(): samples.classes[label] for picture, label in read}


def raw(root: Path) -> list[tuple[str, bytes]]:
    """Return the names and contents of the images in a tar file, which are none."""
    return [(item.name, item.read()) for item in opened(root, "tar", val_fraction=1.0).val.items]


def opened(root: Path, kind: str = "auto", **keys: float) -> Splits:
    return open_splits(Data(root=str(root), format=kind, **keys))


@every_layout
def test_all_hold_what_folders_do(tmp_path: Path, kind: str, write: Write) -> None:
    expected = opened(folders(tmp_path / "folders"))
    root = write(tmp_path / "packed")
    (root / "notes").mkdir()  # no class
    for splits in (opened(root), opened(root, kind), opened(root, kind)):  # the last by its index
        assert splits.train.classes == CLASSES
        assert content(splits.train) == content(expected.train)
        assert content(splits.val) == content(expected.val)
        assert splits.test is None
        assert [splits.train.items[i] for i in range(18)] == list(opened(root).train.items)


@every_layout
def test_label_maps_lie_as_for_folders(tmp_path: Path, kind: str, write: Write) -> None:
    train = opened(write(tmp_path / "packed")).train
    (tmp_path / "maps").mkdir()
    LabelMaps(tmp_path / "maps", train)
    places = {str(train.place(i)) for i in range(len(train))}
    assert places == {f"{name}/{file}.jpg" for name, file, _ in images("train")}


@every_layout
def test_every_image_once_by_two_devices_of_two_processes(
    tmp_path: Path, kind: str, write: Write
) -> None:
    """Exact evaluation without padding, and exact resuming, whatever the images lie in."""
    train = opened(write(tmp_path)).train
    train.image(0)  # what the parent opened, no child may use
    seen = []
    for rank in (0, 1):
        batches = EvalBatches(len(train), 4, rank=rank, world=2)
        dataset = SeededSamples(
            train, EvalReader(train.read, count=len(train), max_bad_samples=9), seed=0
        )
        loader = make_loader(dataset, batches, num_workers=2, collate=list)
        seen += [picture.tobytes() for batch in loader for picture, _ in batch]
    assert sorted(seen) == sorted(content(train))
    # Where processes are not forked, the samples are sent to them.
    assert content(pickle.loads(pickle.dumps(train))) == content(train)


@every_layout
def test_resuming_is_exact(tmp_path: Path, kind: str, write: Write) -> None:
    train = opened(write(tmp_path)).train

    def epoch(done: int) -> list[list[bytes]]:
        batches = TrainBatches(len(train), 4, seed=1)
        batches.resume(0, done)
        read = TrainReader(train.read, lambda *pair: pair, count=len(train), max_bad_samples=0)
        loader = make_loader(
            SeededSamples(train, read, seed=1), batches, num_workers=0, collate=list
        )
        return [[picture.tobytes() for picture, _ in batch] for batch in loader]

    assert epoch(2) == epoch(0)[2:]


@every_layout
def test_a_truncated_jpeg_inside(
    tmp_path: Path, kind: str, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named with its shard, counted once, replaced, and too much beyond the limit."""
    monkey = pytest.MonkeyPatch()
    whole = jpeg("train", "dog", 2)
    monkey.setattr(sys.modules[__name__], "jpeg", lambda *a: cut(jpeg_of(*a), a))
    root = write(tmp_path)
    monkey.undo()
    train = opened(root).train
    at = next(i for i in range(len(train)) if "dog_2" in train.name(i))
    assert len(train.items[at].read()) == len(whole) // 2
    read = TrainReader(train.read, lambda *pair: pair, count=len(train), max_bad_samples=1)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert read(at)[0].tobytes() == train.image((at + 1) % len(train)).tobytes()
    (message,) = caplog.messages
    assert message.startswith(f"skipped: {train.name(at)} is damaged")
    assert train.items[at].file.name in message
    read.bad.most = 0
    with pytest.raises(ValueError, match=r"max_bad_samples=0 .*dog_2.* is damaged"):
        read(at)


jpeg_of = jpeg


def cut(content: bytes, what: tuple[str, str, int]) -> bytes:
    return content[: len(content) // 2] if what == ("train", "dog", 2) else content


def test_a_run_is_the_one_from_folders(tmp_path: Path) -> None:
    """The same order, variation and steps, to the last bit."""

    def run(root: Path) -> dict[str, Any]:
        words = [f"--data.root={root}", "--model.name=rmt_nano", "--data.input_size=32"]
        words += ["--data.batch_size=4", "--data.num_workers=0", "--schedule.epochs=2"]
        words += ["--trainer.accelerator=cpu", "--trainer.devices=1"]
        metrics = fit(load_recipe("small/folder", words), tmp_path / "runs" / root.name)
        return {key: value for key, value in metrics.items() if key != "seconds"}

    results = [run(folders(tmp_path / "folders"))]
    results += [run(write(tmp_path / write.__name__)) for write in (shards, tar_of_tars, parquets)]
    assert len(results[0]["history"]) == 2
    assert results[1] == results[2] == results[0]
    # The two Parquet files hold every other image: another order, the same images evaluated.
    assert results[3]["test"]["images"] == results[0]["test"]["images"] == 6


class TestTar:
    def test_class_folders_to_evaluate_beside(self, tmp_path: Path) -> None:
        """ImageNet's training tars, and its validation images sorted into folders."""
        tar_of_a_class(tmp_path)
        expected = content(opened(tmp_path).val)
        for path in (tmp_path / "val").iterdir():
            path.unlink()
        (tmp_path / "val").rmdir()
        folders(tmp_path / "other")
        (tmp_path / "other" / "val").rename(tmp_path / "val")
        assert content(opened(tmp_path).val) == expected

    def test_class_folders_are_preferred(self, tmp_path: Path) -> None:
        folders(tmp_path)
        tar(tmp_path / "ILSVRC2012_img_train.tar", [("x/1.jpg", b"x"), ("y/1.jpg", b"x")])
        assert opened(tmp_path).train.classes == CLASSES

    def test_a_part_is_held_out(self, tmp_path: Path) -> None:
        for name in ("cat", "dog"):
            own = [(f"{f}.jpg", data) for c, f, data in images("train") if c == name]
            tar(tmp_path / f"{name}.tar", own)
        splits = opened(tmp_path, val_fraction=0.5)
        assert (len(splits.train), len(splits.val)) == (6, 6)
        assert not {str(i) for i in splits.train.items} & {str(i) for i in splits.val.items}

    def test_one_file(self, tmp_path: Path) -> None:
        tar_with_folders(tmp_path)
        assert len(opened(tmp_path / "train.tar", val_fraction=0.5).train) == 9
        evaluated = opened(tmp_path / "val.tar")
        assert (evaluated.train, len(evaluated.val)) == (None, 6)

    def test_the_index_follows_the_file(self, tmp_path: Path) -> None:
        path = tar(tmp_path / "train.tar", [("a/1.jpg", b"1"), ("b/2.jpg", b"22")])
        assert [i.read() for i in opened(tmp_path, "tar", val_fraction=1.0).val.items] == [
            b"1",
            b"22",
        ]
        assert (tmp_path / ".rmt-by_folder.json").is_file()
        tar(path, [("a/1.jpg", b"111"), ("b/2.jpg", b"2"), ("b/3.jpg", b"3")])
        os.utime(path, (0, 0))
        found = opened(tmp_path, "tar", val_fraction=1.0).val.items
        assert [i.read() for i in found] == [b"111", b"2", b"3"]
        (tmp_path / ".rmt-by_folder.json").write_text("{")
        assert len(opened(tmp_path, "tar", val_fraction=1.0).val) == 3

    @pytest.mark.parametrize(
        "change",
        [
            lambda row: [row[0], 10**9, *row[2:]],
            lambda row: [row[0], -5, *row[2:]],
            lambda row: [*row[:2], 10**18, row[3]],
            lambda row: [row[0], row[1] + 512, *row[2:]],
            lambda row: [*row[:2], "1", row[3]],
            lambda row: [*row[:3], 7],
            lambda row: row[:3],
            lambda row: None,
        ],
    )
    def test_an_index_that_does_not_fit_is_made_anew(
        self, tmp_path: Path, change: Callable[[list], object]
    ) -> None:
        """It may come with the data, from anyone."""
        tar(tmp_path / "train.tar", [("a/1.jpg", b"1"), ("b/2.jpg", b"22")])
        expected = raw(tmp_path)
        index = tmp_path / ".rmt-by_folder.json"
        whole = index.read_text()
        said = json.loads(whole)
        said["train.tar"]["images"][-1] = change(said["train.tar"]["images"][-1])
        index.write_text(json.dumps(said))
        assert raw(tmp_path) == expected
        assert index.read_text() == whole
        for other in ("[]", '{"train.tar": []}', '{"train.tar": {"stamp": 1}}', "[" * 100_000):
            index.write_text(other)
            assert raw(tmp_path) == expected

    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (lambda whole: whole[:1024], "has no end mark: it was cut off"),
            (lambda whole: whole[:1100], "has no end mark: it was cut off"),
            (
                lambda whole: whole[:1024] + b"x" * 512 + whole[1536:],
                "is damaged at byte 1,024: what follows is not read",
            ),
            (lambda whole: whole * 2, "goes on behind its end mark"),
        ],
    )
    def test_a_file_of_which_less_is_read_is_named(
        self, tmp_path: Path, damage: Callable[[bytes], bytes], words: str
    ) -> None:
        """Each member is a header and a block of content: the second one begins at byte 1024."""
        path = tar(
            tmp_path / "train.tar", [("a/1.jpg", b"1"), ("b/2.jpg", b"2"), ("b/3.jpg", b"3")]
        )
        whole = path.read_bytes()
        assert opened(tmp_path, "tar", val_fraction=1.0).findings.left_out == 0
        path.write_bytes(damage(whole))
        for _ in range(2):  # looked through, and by the index
            splits = opened(tmp_path, "tar", val_fraction=1.0)
            assert len(splits.val) == (3 if "goes on" in words else 1)
            assert f"1 left out: 1 tar file with a faulty end ({path} {words}" in splits.describe()

    def test_a_cut_tar_within_a_tar(self, tmp_path: Path) -> None:
        inner = tar(tmp_path / "cat.tar", [("1.jpg", b"1"), ("2.jpg", b"2")]).read_bytes()
        (tmp_path / "cat.tar").unlink()
        path = tar(tmp_path / "train.tar", [("cat.tar", inner[:1024]), ("dog.tar", inner)])
        ends: list[str] = []
        assert [member.name for member in members(path, ends)] == [
            "cat/1.jpg",
            "dog/1.jpg",
            "dog/2.jpg",
        ]
        assert ends == [f"{path}: cat has no end mark: it was cut off, or its writer was stopped"]

    def test_mistakes(self, tmp_path: Path) -> None:
        path = tar(tmp_path / "train.tar", [("a/1.jpg", b"x" * 5000), ("b/2.jpg", b"x" * 5000)])
        whole = path.read_bytes()
        for damaged in (whole[:7000], b"", b"nonsense" * 200):
            path.write_bytes(damaged)
            with pytest.raises(
                ValueError, match=r"train\.tar is (not a whole, uncompressed|empty)"
            ):
                list(members(path))
        path.write_bytes(whole)
        with tarfile.open(path, "w:gz") as archive:
            archive.add(__file__)
        with pytest.raises(ValueError, match=r"train\.tar is not a whole, uncompressed tar"):
            opened(tmp_path, "tar")
        with pytest.raises(ValueError, match=r"holds no \*\.tar"):
            opened(tmp_path / "..", "webdataset")
        tar(path, [("1.jpg", b"x"), ("2.jpg", b"x")])
        with pytest.raises(ValueError, match=r"one class only \('train'\)"):
            opened(tmp_path, "tar")
        tar(tmp_path / "other.tar", [])
        with pytest.raises(ValueError, match=r"which split other\.tar belongs to"):
            opened(tmp_path, "tar")

    def test_a_class_of_the_validation_split_only(self, tmp_path: Path) -> None:
        tar(tmp_path / "train.tar", [("a/1.jpg", b"x"), ("b/2.jpg", b"x")])
        tar(tmp_path / "val.tar", [("c/3.jpg", b"x")])
        with pytest.raises(ValueError, match=r"val\.tar: c/3\.jpg is of class 'c'"):
            opened(tmp_path, "tar")

    def test_a_member_that_is_gone(self, tmp_path: Path) -> None:
        path = tar(tmp_path / "x.tar", [("a/1.jpg", b"x" * 3000)])
        (member,) = members(path)
        assert (member.name, len(member.read())) == ("a/1.jpg", 3000)
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ValueError, match=r"x\.tar: a/1\.jpg is cut off: 488 of 3000 bytes"):
            member.read()
        path.unlink()
        with pytest.raises(ValueError, match=r"x\.tar: a/1\.jpg cannot be read"):
            member.read()


class TestWebdataset:
    def test_classes_without_names(self, tmp_path: Path) -> None:
        shards(tmp_path)
        (tmp_path / "classnames.txt").unlink()
        assert opened(tmp_path).train.classes == ("0", "1", "2")

    def test_classes_by_name(self, tmp_path: Path) -> None:
        files = [("1.png", b"x"), ("1.cls", b"owl"), ("2.png", b"x"), ("2.cls", b"ape\n")]
        tar(tmp_path / "0.tar", files)
        found = opened(tmp_path, val_fraction=1.0).val
        assert (found.classes, list(found.labels)) == (("ape", "owl"), [1, 0])

    def test_the_listing_of_timm(self, tmp_path: Path) -> None:
        tar(tmp_path / "a.tar", keyed(images("train")))
        tar(tmp_path / "b.tar", keyed(images("val")))
        listed = {
            "train": {"filenames": ["a.tar"], "shard_lengths": [18], "num_samples": 18},
            "validation": {"filenames": ["b.tar"], "shard_lengths": [6], "num_samples": 6},
        }
        (tmp_path / "_info.json").write_text(json.dumps({"splits": listed}))
        splits = opened(tmp_path)
        assert (len(splits.train), len(splits.val)) == (18, 6)
        listed["train"]["shard_lengths"] = [19]
        (tmp_path / "_info.json").write_text(json.dumps({"splits": listed}))
        with pytest.raises(ValueError, match=r"a\.tar holds 18 images; _info\.json says 19"):
            opened(tmp_path)
        (tmp_path / "b.tar").unlink()
        with pytest.raises(ValueError, match=r"lists 1 files that are not in .*: b\.tar"):
            opened(tmp_path)

    @pytest.mark.parametrize(
        ("listed", "words"),
        [
            ("[" * 10**5, r"_info\.json is not JSON"),
            ("[]", r"_info\.json is a list of 0; expected a mapping"),
            ('{"splits": []}', r"splits is a list of 0; expected a mapping"),
            ('{"splits": {"train": 5}}', r"splits\.train is 5; expected a mapping"),
            ('{"splits": {"train": {}}}', r"splits\.train has no entry 'filenames'"),
            ('{"splits": {"train": {"filenames": "a"}}}', r"filenames is 'a'; expected a list"),
            ('{"splits": {"train": {"filenames": [1]}}}', r"filenames\.0 is 1; expected text"),
            ('{"splits": {"train": {"filenames": ["../a.tar"]}}}', r"not in .*set: \.\./a\.tar"),
            (
                '{"splits": {"train": {"filenames": ["b.tar"], "shard_lengths": [18, 1]}}}',
                r"shard_lengths has 2 numbers for 1 files",
            ),
            (
                '{"splits": {"train": {"filenames": ["b.tar"], "shard_lengths": [-1]}}}',
                r"shard_lengths\.0 is -1; expected a whole number",
            ),
        ],
    )
    def test_a_faulty_listing(self, tmp_path: Path, listed: str, words: str) -> None:
        for path in (tmp_path / "a.tar", tmp_path / "set" / "b.tar"):
            path.parent.mkdir(exist_ok=True)
            tar(path, keyed(images("train")))
        (tmp_path / "set" / "_info.json").write_text(listed)
        with pytest.raises(ValueError, match=words):
            opened(tmp_path / "set")

    @pytest.mark.parametrize(
        ("files", "words"),
        [
            ({"1.jpg": b"x", "2.jpg": b"x", "2.cls": b"0"}, r"1\.jpg has no class"),
            ({"1.jpg": b"x", "1.cls": b""}, r"1\.jpg has an empty \.cls"),
            ({"1.jpg": b"x", "1.json": b"{}"}, r"1\.jpg has no class"),
            ({"1.jpg": b"x", "1.json": b"{"}, r"1\.jpg has no class"),
            ({"1.jpg": b"x", "1.json": b'{"label": []}'}, r"1\.jpg has no class"),
            ({"1.jpg": b"x", "1.json": b"[" * 10**5}, r"1\.jpg has no class"),
            ({"1.jpg": b"x", "1.png": b"x", "1.cls": b"0"}, r"0\.tar: 1 has 2 images"),
            ({"1.cls": b"0"}, r"0\.tar: 1 has 0 images"),
            ({"1.jpg": b"x", "1.cls": b"7"}, r"1\.jpg is of class '7', but there are 2 classes"),
        ],
    )
    def test_a_mistake_is_left_out(
        self, tmp_path: Path, files: dict[str, bytes], words: str
    ) -> None:
        good = {"good.jpg": b"x", "good.cls": b"1"}
        tar(tmp_path / "0.tar", (good | files).items())
        (tmp_path / "classnames.txt").write_text("cat\ndog\n")
        for _ in range(2):  # the second time from the index
            splits = opened(tmp_path, "webdataset", val_fraction=1.0)
            assert splits.val.name(0).endswith("good.jpg")
            assert len(splits.val) == (2 if "2.jpg" in files else 1)
            assert "1 left out: " in splits.describe()
        with pytest.raises(ValueError, match=words):
            opened(tmp_path, "webdataset", max_bad_samples=0)

    def test_keys_that_come_twice_have_no_label_maps(self, tmp_path: Path) -> None:
        for name in ("0.tar", "1.tar"):
            tar(
                tmp_path / name,
                [("1.png", b"x"), ("1.cls", b"0"), ("2.png", b"x"), ("2.cls", b"1")],
            )
        samples = opened(tmp_path, val_fraction=1.0).val
        with pytest.raises(ValueError, match=r"0\.tar: 1\.png and .*1\.tar: 1\.png would share"):
            LabelMaps(tmp_path, samples)


class TestParquet:
    def write(self, path: Path, **columns: list) -> Path:
        import pyarrow
        from pyarrow.parquet import write_table

        write_table(pyarrow.table(columns), path)
        return path

    @pytest.fixture
    def opened_groups(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """The file of each row group that is read."""
        found: list[Path] = []
        open_ = parquet._open
        monkeypatch.setattr(parquet, "_open", lambda file: found.append(file) or open_(file))
        parquet._groups.cache_clear()
        return found

    def test_a_group_is_read_once_in_any_order(
        self, tmp_path: Path, opened_groups: list[Path]
    ) -> None:
        train = opened(parquets(tmp_path)).train
        opened_groups.clear()
        for index in [*range(len(train)), *torch.randperm(len(train)).tolist()]:
            train.image(index)
        assert len(opened_groups) == 6  # two files of nine rows in groups of four

    def test_groups_beyond_the_limit_are_read_again(
        self, tmp_path: Path, opened_groups: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train = opened(parquets(tmp_path)).train
        expected = content(train)
        sizes = [group.nbytes for group in parquet._groups(os.getpid()).kept.values()]
        monkeypatch.setattr(parquet, "KEPT", max(sizes) * 2)
        opened_groups.clear()
        parquet._groups.cache_clear()
        assert content(train) == expected
        assert len(opened_groups) == 6  # in order, each is still read once
        groups = parquet._groups(os.getpid())
        assert groups.size == sum(g.nbytes for g in groups.kept.values()) <= parquet.KEPT
        assert content(train) == expected
        assert len(opened_groups) > 6

    def test_names_without_a_description(self, tmp_path: Path) -> None:
        image = [{"bytes": jpeg("train", "cat", i)} for i in range(4)]
        self.write(tmp_path / "x.parquet", img=image, label=["b", "b", "a", "a"])
        found = opened(tmp_path, val_fraction=1.0).val
        assert (found.classes, list(found.labels)) == (("a", "b"), [1, 1, 0, 0])
        assert found.name(2).endswith("x.parquet: row group 0, row 2 (2)")
        assert found.image(2).size == (20, 24)

    def test_only_a_path(self, tmp_path: Path) -> None:
        image = [{"bytes": None if i else b"x", "path": f"{i}.jpg"} for i in range(2)]
        self.write(tmp_path / "x.parquet", image=image, label=[0, 1])
        with pytest.raises(ValueError, match=r"row 1 \(1\.jpg\) holds no image, only a path"):
            opened(tmp_path, val_fraction=1.0).val.image(1)

    def test_mistakes(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "x.parquet", a=[1], b=[2])
        with pytest.raises(ValueError, match=r"x\.parquet has the columns \['a', 'b'\]"):
            opened(tmp_path)
        path.write_bytes(b"x")
        with pytest.raises(ValueError, match=r"x\.parquet is not a whole Parquet file"):
            opened(tmp_path)

    @pytest.mark.parametrize(
        ("said", "words"),
        [
            ("{", r"x\.parquet: its description by Hugging Face is not JSON"),
            ("[" * 10**5, "Hugging Face is not JSON .nested too deep"),
            ("[]", "Hugging Face is a list of 0; expected a mapping"),
            ('{"info": {"features": 1}}', "info.features is 1; expected a mapping"),
            ('{"info": {"features": {"label": 1}}}', "features.label is 1; expected a mapping"),
            ('{"info": {"features": {"label": {"names": 1}}}}', "names is 1; expected a list"),
            ('{"info": {"features": {"label": {"names": [1]}}}}', "names.0 is 1; expected text"),
        ],
    )
    def test_a_faulty_description(self, tmp_path: Path, said: str, words: str) -> None:
        import pyarrow
        from pyarrow.parquet import write_table

        table = pyarrow.table({"image": [{"bytes": b"x"}], "label": [0]})
        described = table.replace_schema_metadata({"huggingface": said})
        write_table(described, tmp_path / "x.parquet")
        with pytest.raises(ValueError, match=words):
            opened(tmp_path)

    def test_damaged_rows(self, tmp_path: Path) -> None:
        train = opened(parquets(tmp_path)).train
        path = train.items[0].file
        content = path.read_bytes()
        path.write_bytes(content[:4] + b"\xff" * 2000 + content[2004:])
        with pytest.raises(ValueError, match=r"row group 0, row 0 \(cat_0\.jpg\) cannot be read"):
            train.image(0)

    def test_without_pyarrow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        parquets(tmp_path)
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(ValueError, match=r"pip install 'rmt-vision\[parquet\]'"):
            opened(tmp_path)


def test_pyarrow_is_not_imported_without_need() -> None:
    code = "import sys, rmt.classification.datasets; print('pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_items_are_equal_by_place(tmp_path: Path) -> None:
    assert Member(tmp_path, "a", 1, 2) == Member(tmp_path, "a", 1, 2)
