"""Digests tell apart what changes a number, and nothing else."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmt.classification.recipe import Data
from rmt.classification.datasets import open_splits
from rmt.files import digest_of_file, digest_of_samples, identity


def test_a_file_has_the_digest_that_everybody_computes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    assert digest_of_file(tmp_path / "a") == hashlib.sha256(b"weights").hexdigest()
    assert identity(tmp_path / "a") == (f"{tmp_path.name}/a", 7)
    assert identity(tmp_path / "gone") == (f"{tmp_path.name}/gone", -1)


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
