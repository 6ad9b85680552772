"""Digests tell apart what changes a number, and nothing else."""

import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rmt.classification.datasets import open_splits
from rmt.classification.recipe import Data
from rmt.files import (
    digest_of_file,
    digest_of_samples,
    digest_of_tensors,
    for_people,
    identity,
    write_atomically,
    written_aside,
)


def test_a_file_has_the_digest_that_everybody_computes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    assert digest_of_file(tmp_path / "a") == hashlib.sha256(b"weights").hexdigest()
    assert identity(tmp_path / "a") == (f"{tmp_path.name}/a", 7)
    assert identity(tmp_path / "gone") == (f"{tmp_path.name}/gone", -1)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_written_file_has_the_permissions_of_any_new_one(
    umask: int, mode: int, tmp_path: Path
) -> None:
    def write(path: Path) -> None:
        path.unlink()
        path.touch(0o600)  # as safetensors does
        path.write_text("new")

    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "deep" / "file", write)
    finally:
        os.umask(before)
    assert (tmp_path / "deep" / "file").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "deep" / "file").stat().st_mode) == mode


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")

    def write(path: Path) -> None:
        path.write_text("ne")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_atomically(tmp_path / "file", write)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_samples_do_not_run_into_each_other() -> None:
    assert digest_of_samples(["ab", "c"]) != digest_of_samples(["a", "bc"])
    assert digest_of_samples([("a", 1)]) == digest_of_samples([("a", 1)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / "one" / part / label).mkdir(parents=True)
            for i in range(2):
                grey = np.full((8, 8), 60 * i, dtype=np.uint8)
                Image.fromarray(grey).save(tmp_path / "one" / part / label / f"{i}.png")
    return tmp_path / "one"


def test_a_moved_data_set_is_the_same(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "two")
    assert digest(folder) == digest(tmp_path / "two")


@pytest.mark.parametrize(
    "change",
    [
        lambda val: (val / "cat" / "0.png").unlink(),
        lambda val: (val / "cat" / "0.png").rename(val / "cat" / "9.png"),
        lambda val: (val / "cat" / "0.png").rename(val / "dog" / "9.png"),
        lambda val: Image.new("RGB", (9, 9), "red").save(val / "cat" / "0.png"),
    ],
)
def test_another_data_set_is_not(folder: Path, change: Callable[[Path], object]) -> None:
    before = digest(folder)
    change(folder / "val")
    assert digest(folder) != before


def digest(root: Path) -> str:
    return open_splits(Data(root=str(root))).val.digest()


def test_numbers_for_people() -> None:
    content = {
        "top1": 97.22222222222223,
        "raw/images": 360.0,
        "ece": [1e-9 / 3],
        "step": 7,
    }
    assert for_people(content) == {
        "top1": 97.2222,
        "raw/images": 360,
        "ece": [3.33333e-10],
        "step": 7,
    }
    assert isinstance(for_people(content)["raw/images"], int)


def test_what_is_written_aside_arrives_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model.xml"

    def write(weights: str, *, then: Exception | None = None) -> None:
        with written_aside(path) as aside:
            aside.write_text("net")
            aside.with_suffix(".bin").write_text(weights)
            assert not path.exists()
            if then:
                raise then

    with pytest.raises(RuntimeError, match="half"):
        write("half", then=RuntimeError("half"))
    assert not [*path.parent.iterdir()]
    write("weights")
    assert sorted(own.name for own in path.parent.iterdir()) == ["model.bin", "model.xml"]
    path.unlink()
    with pytest.raises(ValueError, match=r"model\.bin is there already"):
        write("others")
    assert [own.read_text() for own in path.parent.iterdir()] == ["weights"]


def test_digests_of_tensors_tell_names_shapes_types_and_values() -> None:
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2, 3).T}
    changed = [
        {"a": tensors["a"], "c": tensors["b"]},
        tensors | {"a": tensors["a"].view(2, 3)},
        tensors | {"a": tensors["a"].long()},
        tensors | {"a": tensors["a"] + 1e-6},
    ]
    digests = {digest_of_tensors(each) for each in (tensors, *changed)}
    assert len(digests) == 5
    again = {"b": tensors["b"].clone(), "a": tensors["a"].clone()}
    assert digest_of_tensors(again) in digests
