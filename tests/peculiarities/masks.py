"""Cells of segmentation: how masks are stored and called, and what their values mean."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from peculiarities import cell, make, opened
from peculiarities.classes_and_boxes import turned_photo
from rmt.data.splits import Splits

COLOURS = {"ground": (0, 0, 0), "disc": (200, 10, 10), "square": (255, 255, 255)}


def all_labels(splits: Splits) -> list[np.ndarray]:
    return [splits.train.read(i)[1] for i in range(len(splits.train))]


def assert_equal(splits: Splits, expected: list[np.ndarray]) -> None:
    found = all_labels(splits)
    assert len(found) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def each_mask(root: Path) -> list[Path]:
    return sorted((root / "masks").rglob("*.png"))


def with_colours(root: Path) -> list[np.ndarray]:
    """Write colours into classes.txt and into the masks; return the labels."""
    lines = [f"{name} {' '.join(map(str, colour))}" for name, colour in COLOURS.items()]
    (root / "classes.txt").write_text("\n".join(lines))
    for path in each_mask(root):
        values = np.asarray(Image.open(path))
        Image.fromarray(np.array(list(COLOURS.values()), np.uint8)[values]).save(path)
    return all_labels(opened("masks", root))


@cell("Colours in `classes.txt`: RGB masks, palettes, grey, transparency", "read", "masks")
def colours(column: str, root: Path) -> Splits:
    place = make(column, root)
    indices = all_labels(opened(column, place))
    expected = with_colours(root)
    assert all(np.array_equal(a, b) for a, b in zip(indices, expected, strict=True))
    for mode in ("P", "RGBA"):
        for path in each_mask(root):
            image = Image.open(path).convert("RGB")
            image.quantize(16) if mode == "P" else image.convert("RGBA")
            (image.quantize(16) if mode == "P" else image.convert("RGBA")).save(path)
        splits = opened(column, place)
        assert_equal(splits, expected)
    return splits


@cell("Grey masks of 0 and 255 with colours in `classes.txt`", "read", "masks")
def black_and_white(column: str, root: Path) -> Splits:
    place = make(column, root)
    (root / "classes.txt").write_text("background 0 0 0\nthing 255 255 255\n")
    expected = []
    for path in each_mask(root):
        values = np.asarray(Image.open(path)) > 0
        Image.fromarray(values).save(path)  # one bit per pixel
        if "train" in path.parts:
            expected.append(values.astype(np.uint8))
    assert_equal(opened(column, place), expected)
    for path in each_mask(root):
        Image.open(path).convert("L").save(path)
    splits = opened(column, place)
    assert_equal(splits, expected)
    return splits


@cell("Masks that label one class only, such as 0 and 255 without colours", "refused", "masks",
      words="label one class only ('ground')")  # fmt: skip
def one_class(column: str, root: Path) -> Splits:
    from rmt.segmentation.samples import check_labels

    place = make(column, root)
    for path in each_mask(root):
        values = np.asarray(Image.open(path)) > 0
        Image.fromarray((255 * values).astype(np.uint8)).save(path)
    splits = opened(column, place)
    check_labels(splits.train)  # as a run does before its first step
    return splits


@cell("Indices in palette PNGs, 16 bits, one value three times", "read", "masks")
def index_masks(column: str, root: Path) -> Splits:
    place = make(column, root)
    expected = all_labels(opened(column, place))
    values = {path: np.asarray(Image.open(path)) for path in each_mask(root)}
    for kind in ("palette", "16 bits", "RGB"):
        for path, own in values.items():
            image = Image.fromarray(own.astype(np.uint16) if kind == "16 bits" else own)
            if kind == "palette":
                image.putpalette([250, 0, 0, 0, 250, 0, 0, 0, 250])
            (image.convert("RGB") if kind == "RGB" else image).save(path)
        splits = opened(column, place)
        assert_equal(splits, expected)
    return splits


@cell("Masks that are JPEGs", "refused", "masks", words="JPEG is lossy")
def jpeg_masks(column: str, root: Path) -> Splits:
    place = make(column, root)
    for path in each_mask(root):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    return opened(column, place)


@cell("One mask that is a JPEG, of another size, or with a value of no class", "left out", "masks")
def one_bad_mask(column: str, root: Path) -> Splits:
    from rmt.data.bad_samples import EvalReader

    place = make(column, root)
    jpeg, small, strange = each_mask(root)[:3]
    Image.open(jpeg).convert("L").save(jpeg, format="JPEG")
    Image.open(small).resize((10, 10)).save(small)
    Image.fromarray(np.full((48, 64), 77, np.uint8)).save(strange)
    splits = opened(column, place)
    reader = EvalReader(splits.train.read, count=len(splits.train), max_bad_samples=3)
    read = [reader(i) for i in range(len(splits.train))]
    assert [i for i, each in enumerate(read) if each is None] == [0, 1, 2]
    splits.findings.fault("unreadable sample", str(jpeg))
    return splits


@cell("Masks called `x_mask.png`, `x_labelIds.png`, `x.jpg.png`; images `x_image.jpg`", "counted",
      "masks", words="of other names than their images")  # fmt: skip
def mask_names(column: str, root: Path) -> Splits:
    place = make(column, root)
    expected = all_labels(opened(column, place))
    stems = {path: path.stem for path in each_mask(root)}
    for end in ("_mask", "_labelIds", "_segmentation", ".jpg", "-mask"):
        stems = {path.rename(path.with_name(f"{s}{end}.png")): s for path, s in stems.items()}
        splits = opened(column, place)
        assert_equal(splits, expected)
        assert not splits.findings.left_out
    for path in (root / "images").rglob("*.jpg"):
        path.rename(path.with_name(f"{path.stem}_image.jpg"))
    splits = opened(column, place)
    assert_equal(splits, expected)
    return splits


@cell("An image without a mask, or with two", "left out", "masks",
      words="1 image without mask")  # fmt: skip
def no_mask(column: str, root: Path) -> Splits:
    place = make(column, root)
    first, second, *_ = each_mask(root)
    first.unlink()
    Image.open(second).save(second.with_suffix(".tif"))
    splits = opened(column, place)
    assert len(splits.train) == 4
    assert "1 image with two masks" in splits.describe()
    return splits


@cell(
    "A mask without an image", "counted", "masks", words="1 mask without image (first train_9.png)"
)
def lonely_mask(column: str, root: Path) -> Splits:
    place = make(column, root)
    first = each_mask(root)[0]
    shutil.copy(first, first.with_name("train_9.png"))
    return opened(column, place)


@cell("A void class that is not 255 (`data.ignore_index`)", "read", "masks")
def void(column: str, root: Path) -> Splits:
    place = make(column, root)
    for path in each_mask(root):
        values = np.asarray(Image.open(path)).copy()
        values[:5] = 11
        Image.fromarray(values).save(path)
    splits = opened(column, place, ignore_index=11)
    assert all((labels[:5] == 255).all() for labels in all_labels(splits))
    splits = opened(column, place, ignore_index=2)  # of a class: never labelled
    assert splits.train.table[2] == 255
    deep = opened(column, place, ignore_index=65535)
    assert deep.train.table[65535] == 255
    return splits


@cell("Photos with an EXIF rotation, whose mask lies as stored, or upright", "read", "masks")
def exif_masks(column: str, root: Path) -> Splits:
    place = make(column, root)
    expected = all_labels(opened(column, place))
    turned_photo(root / "images", "train_0")
    assert_equal(opened(column, place), expected)
    mask = root / "masks" / "train" / "train_0.png"
    Image.open(mask).transpose(Image.Transpose.ROTATE_90).save(mask)
    splits = opened(column, place)
    image, labels = splits.train.read(0)
    assert image.shape[:2] == labels.shape == (64, 48)
    return splits


@cell("Own data in ADE20K's, VOC's or Cityscapes' layout, with `classes.txt`", "read", "masks")
def own_classes(column: str, root: Path) -> Splits:
    make(column, root / "made")
    expected = all_labels(opened(column, root / "made"))
    for layout in ("ade", "voc", "cityscapes"):
        own = root / layout
        shutil.copytree(root / "made", own)
        if layout == "ade":
            (own / "masks").rename(own / "annotations")
            for folder in ("images", "annotations"):
                (own / folder / "train").rename(own / folder / "training")
                (own / folder / "val").rename(own / folder / "validation")
        elif layout == "voc":
            _as_voc(own)
        else:
            _as_cityscapes(own)
        splits = opened(column, own)
        assert splits.classes == ("ground", "disc", "square")
        assert_equal(splits, expected)
    return splits


def _as_voc(own: Path) -> None:
    lists = own / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for folder, name in (("images", "JPEGImages"), ("masks", "SegmentationClass")):
        (own / name).mkdir()
        for split in ("train", "val"):
            files = sorted((own / folder / split).iterdir())
            stems = [f"photo {path.stem} (1)" for path in files]
            for path, stem in zip(files, stems, strict=True):
                path.rename(own / name / f"{stem}{path.suffix}")
            (lists / f"{split}.txt").write_text("\n".join(stems))
        shutil.rmtree(own / folder)


def _as_cityscapes(own: Path) -> None:
    ends = {"images": ("leftImg8bit", "_leftImg8bit"), "masks": ("gtFine", "_gtFine_labelIds")}
    for folder, (name, end) in ends.items():
        (own / folder).rename(own / name)
        for path in [path for path in (own / name).rglob("*") if path.is_file()]:
            path.rename(path.with_name(f"{path.stem}{end}{path.suffix}"))


@cell("CVAT: `labelmap.txt` with `SegmentationClass/` and `default.txt`", "read", "masks")
def cvat_masks(column: str, root: Path) -> Splits:
    place = make(column, root)
    expected = with_colours(root)
    (root / "classes.txt").unlink()
    _as_voc(root)
    lines = [f"{name}:{','.join(map(str, own))}::" for name, own in COLOURS.items()]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines))
    lists = root / "ImageSets" / "Segmentation"
    (lists / "train.txt").rename(lists / "default.txt")
    (lists / "val.txt").unlink()
    splits = opened(column, place, val_fraction=0.5)
    assert (len(splits.train), len(splits.val)) == (3, 3)
    found = {Path(splits.train.name(i)).stem: splits.train.read(i)[1] for i in range(3)}
    for stem, labels in found.items():
        assert np.array_equal(labels, expected[int(stem.split("_")[1].split()[0])])
    return splits


@cell("Roboflow: images and `_mask.png` in one folder, `_classes.csv`", "counted", "masks",
      words="of other names than their images")  # fmt: skip
def roboflow_masks(column: str, root: Path) -> Splits:
    make(column, root / "made")
    expected = all_labels(opened(column, root / "made"))
    own = root / "export"
    for split, folder in (("train", "train"), ("val", "valid")):
        (own / folder).mkdir(parents=True)
        for path in (root / "made" / "images" / split).iterdir():
            path.rename(own / folder / path.name)
        for path in (root / "made" / "masks" / split).iterdir():
            path.rename(own / folder / f"{path.stem}_mask.png")
        (own / folder / "_classes.csv").write_text(
            "Pixel Value, Class\n0, ground\n1, disc\n2, square\n"
        )
    splits = opened(column, own)
    assert splits.classes == ("ground", "disc", "square")
    assert_equal(splits, expected)
    assert len(splits.val) == 6
    return splits
