"""Labelled images are found in every layout that is promised, and refused with a way out."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmt.classification.datasets import open_splits
from rmt.classification.recipe import Data
from rmt.data.splits import Splits


def put(folder: Path, **counts: int) -> Path:
    """Make class folders with so many images each."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / name / f"{i:02d}.png")
    return folder


def sizes(splits: Splits) -> tuple[int, ...]:
    return tuple(
        0 if part is None else len(part) for part in (splits.train, splits.val, splits.test)
    )


class TestFolder:
    def test_one_root_is_split_class_by_class(self, tmp_path: Path) -> None:
        put(tmp_path, cat=20, dog=10)
        splits = open_splits(Data(root=str(tmp_path), val_fraction=0.2))
        assert splits.train.classes == ("cat", "dog")
        assert sizes(splits) == (24, 6, 0)
        assert sum(splits.val.labels) == 2
        everything = {*splits.train.items, *splits.val.items}
        assert len(everything) == 30
        again = open_splits(Data(root=str(tmp_path), val_fraction=0.2))
        assert again.val.items == splits.val.items

    @pytest.mark.parametrize("names", [("train", "val", "test"), ("training", "valid", "testing")])
    def test_splits_are_kept(self, names: tuple[str, ...], tmp_path: Path) -> None:
        for name, count in zip(names, (4, 2, 1), strict=True):
            put(tmp_path / name, a=count, b=count)
        assert sizes(open_splits(Data(root=str(tmp_path)))) == (8, 4, 2)

    def test_without_a_validation_split(self, tmp_path: Path) -> None:
        put(tmp_path / "train", a=10, b=10)
        put(tmp_path / "test", b=3)  # no image of class a
        splits = open_splits(Data(root=str(tmp_path), val_fraction=0.2))
        assert sizes(splits) == (16, 4, 3)
        assert set(splits.test.labels) == {1}

    def test_all_to_be_evaluated(self, tmp_path: Path) -> None:
        put(tmp_path, a=1, b=2)
        assert sizes(open_splits(Data(root=str(tmp_path), val_fraction=1.0))) == (0, 3, 0)

    def test_hidden_and_other_files_are_no_images(self, tmp_path: Path) -> None:
        put(tmp_path, a=4, b=4)
        (tmp_path / ".cache").mkdir()
        (tmp_path / "a" / "notes.txt").write_text("x")
        (tmp_path / "a" / "._00.png").write_text("x")
        assert sum(sizes(open_splits(Data(root=str(tmp_path))))) == 8

    def test_images_in_folders_of_folders(self, tmp_path: Path) -> None:
        put(tmp_path / "a", x=2, y=3)
        put(tmp_path, b=5)
        splits = open_splits(Data(root=str(tmp_path), val_fraction=0.2))
        assert splits.train.classes == ("a", "b")
        assert sum(sizes(splits)) == 10

    def test_a_folder_around_them_is_asked_about(self, tmp_path: Path) -> None:
        """Refused where it is certain, else named: classes may have folders of their own."""
        put(tmp_path / "around" / "set", a=2, b=2)
        with pytest.raises(ValueError, match=r"classes set, but set holds 2 .*root to .*set$"):
            open_splits(Data(root=str(tmp_path / "around")))
        put(tmp_path / "Dataset", a=2, b=2, c=2)
        put(tmp_path, Examples=3)
        (tmp_path / "around" / "set").rename(tmp_path / ".away")
        (tmp_path / "around").rmdir()
        with pytest.raises(ValueError, match=r"the classes Dataset, Examples, but Dataset holds 3"):
            open_splits(Data(root=str(tmp_path)))
        (tmp_path / "Dataset" / "c").rename(tmp_path / "Examples" / "c")
        splits = open_splits(Data(root=str(tmp_path)))
        assert splits.classes == ("Dataset", "Examples")
        assert "1 class of folders (Dataset holds a, b; if these" in splits.describe()

    def test_an_empty_folder_is_not_a_class(self, tmp_path: Path) -> None:
        put(tmp_path, a=4, b=4, empty=0)
        splits = open_splits(Data(root=str(tmp_path)))
        assert splits.classes == ("a", "b")
        assert "1 empty class folder (empty)" in splits.describe()

    def test_a_class_without_training_images(self, tmp_path: Path) -> None:
        put(tmp_path / "train", a=2, b=2, rare=0)
        put(tmp_path / "val", a=1, rare=1)
        splits = open_splits(Data(root=str(tmp_path)))
        assert splits.classes == ("a", "b", "rare")
        found = splits.describe()
        assert "1 class without training images (rare)" in found
        assert "1 class without images to evaluate (b)" in found

    def test_one_class(self, tmp_path: Path) -> None:
        put(tmp_path, only=5)
        with pytest.raises(ValueError, match=r"of one class only \('only'\).*needs two"):
            open_splits(Data(root=str(tmp_path)))
        assert sizes(open_splits(Data(root=str(tmp_path), val_fraction=1.0))) == (0, 5, 0)

    def test_images_without_class_folders(self, tmp_path: Path) -> None:
        put(tmp_path, a=2)
        with pytest.raises(ValueError, match="class folders has one folder per class"):
            open_splits(Data(root=str(tmp_path / "a")))
        with pytest.raises(ValueError, match="holds no class folders with images"):
            open_splits(Data(format="folder", root=str(tmp_path / "a")))

    def test_too_few_to_split(self, tmp_path: Path) -> None:
        put(tmp_path, many=9, single=1)
        with pytest.raises(ValueError, match="class 'single' has one image only"):
            open_splits(Data(root=str(tmp_path)))

    def test_strange_classes(self, tmp_path: Path) -> None:
        put(tmp_path / "train", a=2, b=2)
        put(tmp_path / "val", a=2, c=2)
        with pytest.raises(ValueError, match="classes that the training split lacks: c"):
            open_splits(Data(root=str(tmp_path)))

    @pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5])
    def test_fraction(self, fraction: float, tmp_path: Path) -> None:
        put(tmp_path, a=2, b=2)
        with pytest.raises(ValueError, match=f"data.val_fraction is {fraction:g}"):
            open_splits(Data(root=str(tmp_path), val_fraction=fraction))

    @pytest.mark.parametrize("images", [2, 3, 5])
    def test_smallest_sets(self, images: int, tmp_path: Path) -> None:
        put(tmp_path, a=images, b=images, c=images)
        splits = open_splits(Data(root=str(tmp_path), val_fraction=0.01))
        assert set(splits.train.labels) == {0, 1, 2}
        assert len(splits.val) == 3


def test_nowhere(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root '.*gone' does not exist; name the folder"):
        open_splits(Data(root=str(tmp_path / "gone")))
    with pytest.raises(ValueError, match=r"data\.root is empty"):
        open_splits(Data())
    with pytest.raises(ValueError, match=r"data\.format is 'foldr'; did you mean 'folder'"):
        open_splits(Data(format="foldr", root=str(tmp_path)))


class TestCSV:
    def write(self, folder: Path, text: str, encoding: str = "utf-8") -> Data:
        put(folder, pictures=12)
        (folder / "list.csv").write_text(text, encoding=encoding)
        return Data(root=str(folder / "list.csv"), val_fraction=0.25)

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
    def test_columns(self, encoding: str, tmp_path: Path) -> None:
        rows = [f"pictures/{i:02d}.png,{'hot' if i % 3 else 'cold'}" for i in range(12)]
        splits = open_splits(self.write(tmp_path, "\n".join(["path,label", *rows]), encoding))
        assert splits.train.classes == ("cold", "hot")
        assert sizes(splits) == (9, 3, 0)
        assert splits.train.image(0).size == (8, 8)
        assert splits.train.name(0) == str(tmp_path / "pictures" / "01.png")

    def test_splits(self, tmp_path: Path) -> None:
        parts = ["train"] * 6 + ["Val"] * 2 + ["test"] * 4
        rows = [f"{part},pictures/{i:02d}.png,{i % 2}" for i, part in enumerate(parts)]
        splits = open_splits(self.write(tmp_path, "\n".join(["split,path,label", *rows])))
        assert sizes(splits) == (6, 2, 4)

    def test_numbers_are_sorted_as_numbers(self, tmp_path: Path) -> None:
        rows = [f"pictures/{i:02d}.png,{i}" for i in range(12)] * 2
        splits = open_splits(self.write(tmp_path, "\n".join(["path,label", *rows])))
        assert splits.train.classes == tuple(map(str, range(12)))

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "it has no rows"),
            ("path,label\n", "it has no rows"),
            ("file;class\na;b\n", r"columns path and label.*\['file;class'\]"),
            ("path,label\n,x\n", "holds no images"),
            ("path,label\na.png,x\nb.png,x\n", "of one class only"),
        ],
    )
    def test_mistakes(self, text: str, words: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=words):
            open_splits(self.write(tmp_path, text))


def test_digits() -> None:
    splits = open_splits(Data(format="digits"))
    assert sizes(splits) == (1293, 144, 360)
    assert splits.train.classes == tuple("0123456789")
    assert splits.test.image(0).size == (8, 8)
    assert splits.test.image(0).mode == "RGB"
    assert splits.test.name(3) == "#3"


class TestFashion:
    def write(self, folder: Path, part: str, count: int, labels: int | None = None) -> None:
        noise = np.random.default_rng(count)
        pixels = noise.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        classes = (np.arange(count if labels is None else labels) % 10).astype(np.uint8)
        images = struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes()
        names = struct.pack(">II", 2049, len(classes)) + classes.tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(names))

    @pytest.mark.parametrize("format", ["auto", "fashion-mnist"])
    def test_files(self, format: str, tmp_path: Path) -> None:
        self.write(tmp_path, "train", 100)
        self.write(tmp_path, "t10k", 20)
        splits = open_splits(Data(format=format, root=str(tmp_path)))
        assert sizes(splits) == (90, 10, 20)
        assert splits.test.classes[splits.test.labels[9]] == "Ankle boot"
        expected = np.random.default_rng(20).integers(0, 256, (20, 28, 28), dtype=np.uint8)
        assert np.array_equal(np.asarray(splits.test.image(7).convert("L")), expected[7])

    def test_absent(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no Fashion-MNIST in .*dataset-fashion-mnist"):
            open_splits(Data(format="fashion-mnist", root=str(tmp_path)))
        with pytest.raises(ValueError, match="name a folder to download"):
            open_splits(Data(format="fashion-mnist", download=True))

    def test_damaged(self, tmp_path: Path) -> None:
        self.write(tmp_path, "train", 100)
        self.write(tmp_path, "t10k", 20)
        path = tmp_path / "t10k-images-idx3-ubyte.gz"
        path.write_bytes(path.read_bytes()[:500])
        with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz .*cannot be read"):
            open_splits(Data(root=str(tmp_path)))
        self.write(tmp_path, "t10k", 20, labels=19)
        with pytest.raises(ValueError, match=r"holds 20 images and .* 19 labels"):
            open_splits(Data(root=str(tmp_path)))


@pytest.mark.parametrize("names", [("val",), ("test",), ("val", "test")])
def test_a_folder_to_evaluate_only(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        put(tmp_path / name, cat=2, dog=3)
    splits = open_splits(Data(root=str(tmp_path)))
    assert splits.train is None
    assert len(splits.evaluated) == 5
    assert splits.classes == ("cat", "dog")
    assert "none to train on" in splits.describe()


def test_a_class_may_be_called_as_a_split(tmp_path: Path) -> None:
    put(tmp_path, train=4, bus=4)
    assert open_splits(Data(root=str(tmp_path))).train.classes == ("bus", "train")


def test_a_csv_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("path,label\nü.png,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.csv is not in UTF-8"):
        open_splits(Data(root=str(tmp_path / "a.csv")))
