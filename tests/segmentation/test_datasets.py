"""Data sets in four layouts, masks of every kind, and what is said when something is wrong."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rmt.segmentation.classes import ADE20K, CITYSCAPES, VOC, colours
from rmt.segmentation.datasets import open_splits
from rmt.segmentation.datasets.class_file import read_classes
from rmt.segmentation.masks import plain_table, read_mask
from rmt.segmentation.recipe import Data
from rmt.segmentation.samples import check_labels
from rmt.segmentation.toy import SHAPES, draw, toy


def data(root: Path, **fields) -> Data:
    return Data(root=str(root), **fields)


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    ("layout", "classes"),
    [("folder", SHAPES), ("ade20k", ADE20K), ("cityscapes", tuple(CITYSCAPES)), ("voc", VOC)],
)
@pytest.mark.parametrize("named", [True, False])
def test_layouts(tmp_path: Path, layout: str, classes: tuple[str, ...], named: bool) -> None:
    toy(tmp_path, layout, images=2)
    splits = open_splits(data(tmp_path, format=layout if named else "auto"))
    assert splits.train.classes == classes
    assert (len(splits.train), len(splits.val), splits.test) == (2, 2, None)
    for samples, seed in ((splits.train, 0), (splits.val, 1000)):
        image, labels = samples.read(1)
        assert image.shape == (40, 72, 3)
        drawn = draw(seed + 1, 40, 72)[1]
        names = {
            "folder": {0: "ground", 1: "disc", 2: "square"},
            "ade20k": {0: "wall", 1: "sky", 2: "floor"},
            "cityscapes": {0: "road", 1: "car"},
            "voc": {0: "background", 1: "cat", 2: "person"},
        }[layout]
        expected = np.full(256, 255)
        expected[list(names)] = [classes.index(name) for name in names.values()]
        expected = expected[drawn]
        if layout in ("ade20k", "voc"):
            expected[0] = 255
        assert np.array_equal(labels, expected)


def test_ade20k_values() -> None:
    """0 is unlabelled, 1 the first class, 150 the last; 255 stays ignored."""
    table = plain_table(150, reduce_zero_label=True)
    assert table[[0, 1, 150, 255]].tolist() == [255, 0, 149, 255]
    assert (table[151:255] == -1).all()
    assert len(set(ADE20K)) == 150
    assert len(VOC) == 21
    assert len(CITYSCAPES) == 19


def test_undivided_folder_is_split(tmp_path: Path) -> None:
    for i in range(10):
        image, labels = draw(i, 20, 20)
        write(tmp_path / "images" / f"{i}.jpg", image)
        write(tmp_path / "masks" / f"{i}.png", labels)
    (tmp_path / "classes.txt").write_text("ground\ndisc\nsquare\n")
    splits = open_splits(data(tmp_path, val_fraction=0.3))
    again = open_splits(data(tmp_path, val_fraction=0.3))
    assert (len(splits.train), len(splits.val)) == (7, 3)
    assert splits.val.images == again.val.images
    assert not set(splits.val.images) & set(splits.train.images)
    assert [p.stem for p in splits.train.images] == [p.stem for p in splits.train.masks]


def test_test_split_is_kept_apart(tmp_path: Path) -> None:
    toy(tmp_path, images=2)
    for folder in ("images", "masks"):
        (tmp_path / folder / "val").rename(tmp_path / folder / "test")
    splits = open_splits(data(tmp_path, val_fraction=0.5))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (1, 1, 2)


@pytest.mark.parametrize("mode", ["P", "L", "I;16", "1", "LA", "RGB of grey"])
def test_mask_modes(tmp_path: Path, mode: str) -> None:
    values = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([200, 0, 0, 0, 200, 0])
    elif mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16))
    elif mode == "1":
        image = Image.fromarray(values * 255).convert("1")
    elif mode == "LA":
        image = image.convert("LA")
    elif mode == "RGB of grey":
        image = image.convert("RGB")
    image.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png", plain_table(2)), values)


def test_colour_masks_with_a_palette(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("sky 10 20 30\nred  car 200 0 0\n")
    names, palette = read_classes(tmp_path / "classes.txt")
    assert names == ("sky", "red  car".replace("  ", " "))
    pixels = np.array([[[10, 20, 30], [200, 0, 0]], [[0, 0, 0], [255, 255, 255]]], dtype=np.uint8)
    path = write(tmp_path / "mask.png", pixels)
    labels = read_mask(path, plain_table(2), palette)
    assert labels.tolist() == [[0, 1], [255, 255]]
    pixels[0, 1] = (1, 2, 3)
    write(path, pixels)
    with pytest.raises(
        ValueError, match=r"mask\.png has the colour \(1, 2, 3\) at pixel \(x=1, y=0"
    ):
        read_mask(path, plain_table(2), palette)


def test_colour_mask_without_a_palette(tmp_path: Path) -> None:
    path = write(tmp_path / "mask.png", np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    with pytest.raises(ValueError, match=r"mask\.png is in colour.*classes\.txt"):
        read_mask(path, plain_table(2))


def test_mask_value_outside_the_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "mask.png", np.array([[0, 7], [7, 9]], dtype=np.uint8))
    with pytest.raises(ValueError, match=r"mask\.png has the value 7 at 2 pixels \(and 1 more"):
        read_mask(path, plain_table(3))
    sixteen = write(tmp_path / "deep.png", np.array([[0, 300]], dtype=np.uint16))
    with pytest.raises(ValueError, match=r"deep\.png has the value 300 at 1 pixels"):
        read_mask(sixteen, plain_table(3))


def test_mask_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"mask .*mask\.png is not an image that Pillow can read"):
        read_mask(tmp_path / "mask.png", plain_table(2))
    with pytest.raises(FileNotFoundError, match=r"no mask .*gone\.png"):
        read_mask(tmp_path / "gone.png", plain_table(2))


def test_mask_of_another_size(tmp_path: Path) -> None:
    toy(tmp_path, images=1)
    write(tmp_path / "masks" / "train" / "train_0.png", np.zeros((48, 63), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"train_0\.png is 63x48 pixels, its image .*jpg 64x48"):
        open_splits(data(tmp_path)).train.read(0)


def test_image_without_mask(tmp_path: Path) -> None:
    toy(tmp_path, images=3)
    (tmp_path / "masks" / "train" / "train_1.png").unlink()
    splits = open_splits(data(tmp_path))
    assert [path.name for path in splits.train.images] == ["train_0.jpg", "train_2.jpg"]
    assert "1 left out: 1 image without mask (" in splits.describe()
    assert "train_1.jpg)" in splits.describe()
    with pytest.raises(ValueError, match=r"more than data\.max_bad_samples=0 .*without mask"):
        open_splits(data(tmp_path, max_bad_samples=0))
    for path in (tmp_path / "masks" / "train").iterdir():
        path.rename(path.with_name(f"other{path.name}"))
    with pytest.raises(ValueError, match=r"none of the 3 images in .*same name but for the suffix"):
        open_splits(data(tmp_path))


@pytest.mark.parametrize("suffix", [".bmp", ".PNG"])
def test_two_masks_of_one_image(tmp_path: Path, suffix: str) -> None:
    toy(tmp_path, images=2)
    write(tmp_path / "masks" / "val" / f"val_0{suffix}", np.zeros((48, 64), dtype=np.uint8))
    splits = open_splits(data(tmp_path))
    assert [path.name for path in splits.val.images] == ["val_1.jpg"]
    assert "could both be the mask of val_0.jpg" in splits.describe()


@pytest.mark.parametrize("layout", ["folder", "ade20k", "cityscapes", "voc"])
def test_validation_split_alone(tmp_path: Path, layout: str) -> None:
    toy(tmp_path, layout, images=2)
    whole = open_splits(data(tmp_path))
    for path in sorted(tmp_path.rglob("train*"), reverse=True):  # what is in a folder comes first
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    splits = open_splits(data(tmp_path))
    assert (splits.train, splits.val.images) == (None, whole.val.images)


def test_test_split_alone(tmp_path: Path) -> None:
    toy(tmp_path, images=2)
    for folder in ("images", "masks"):
        shutil.rmtree(tmp_path / folder / "train")
        (tmp_path / folder / "val").rename(tmp_path / folder / "test")
    splits = open_splits(data(tmp_path))
    assert (splits.train, len(splits.evaluated)) == (None, 2)


def test_masks_of_0_and_255(tmp_path: Path) -> None:
    """They label one class alone; a single other value shows that they mean what they say."""
    samples = open_splits(data(toy(tmp_path, images=3))).train
    check_labels(samples)
    for path in samples.masks:
        write(path, np.array([[0, 255]], dtype=np.uint8))
    samples.masks[1].write_bytes(b"")  # named by the training, not here
    with pytest.raises(ValueError, match=r"label one class only \('ground'\).*write .* as 1"):
        check_labels(samples)
    write(samples.masks[2], np.array([[0, 255], [1, 0]], dtype=np.uint8))
    check_labels(samples)
    for path in samples.masks:
        write(path, np.array([[2, 2]], dtype=np.uint8))
    with pytest.raises(ValueError, match=r"label one class only \('square'\)$"):
        check_labels(samples)


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root is empty"):
        open_splits(Data())
    with pytest.raises(ValueError, match="does not exist"):
        open_splits(data(tmp_path / "gone"))
    with pytest.raises(ValueError, match="none of the known layouts"):
        open_splits(data(tmp_path))
    with pytest.raises(ValueError, match="holds no image"):
        open_splits(data(tmp_path, format="ade20k"))
    with pytest.raises(ValueError, match=r"no .*classes\.txt"):
        open_splits(data(tmp_path, format="folder"))
    toy(tmp_path, "voc", images=1)
    (tmp_path / "SegmentationClass" / "val_0.png").unlink()
    with pytest.raises(ValueError, match=r"val\.txt names 1 images; none has a file and a mask"):
        open_splits(data(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one\n", "names 1 classes"),
        ("a 1 2 3\nb\n", "colours for 1 of 2"),
    ],
)
def test_wrong_classes_file(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_classes(tmp_path / "classes.txt")


def test_colours_are_distinct() -> None:
    shades = colours(150)
    assert shades.shape == (150, 3)
    assert len({tuple(c) for c in shades.tolist()}) == 150
    assert shades.max(axis=1).min() > 100


def test_unknown_toy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown format 'coco'"):
        toy(tmp_path, "coco")


def test_a_list_of_voc_does_not_lead_out(tmp_path: Path) -> None:
    root = toy(tmp_path / "set", "voc")
    listing = root / "ImageSets" / "Segmentation" / "train.txt"
    stems = listing.read_text().split()
    for folder, end in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        path = root / folder / f"{stems[0]}.{end}"
        path.rename(tmp_path / f"secret.{end}")
    listing.write_text("\n".join(["../../secret", *stems[1:]]))
    splits = open_splits(Data(root=str(root)))
    assert len(splits.train) == len(stems) - 1
    assert not any("secret" in splits.train.name(i) for i in range(len(splits.train)))
    assert "1 image outside of the data set (../../secret of train.txt; " in splits.describe()
