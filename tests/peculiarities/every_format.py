"""Cells that most formats have: names of splits, files and texts, and files that are damaged."""

import csv
import io
import json
import os
import tarfile
import unicodedata
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from peculiarities import COLUMNS, cell, images_of, make, opened
from rmt.data.splits import Splits

ALL = tuple(COLUMNS)
FILES = ("class folders", "YOLO", "VOC", "masks")


def sizes(splits: Splits) -> tuple[int, ...]:
    return tuple(len(part) if part is not None else 0 for part in (splits.train, splits.val))


def rename(root: Path, names: dict[str, str]) -> None:
    """Rename what is called as a split, files and folders alike."""
    for path in sorted(root.rglob("*"), reverse=True):
        for old, new in names.items():
            if path.stem == old:
                path.rename(path.with_name(new + path.suffix))
            elif f"-{old}-" in path.name or path.name.startswith(f"{old}-"):
                path.rename(path.with_name(path.name.replace(old, new)))


@cell("Splits called `Train`, `Validation`, in any case", "read", *ALL)
def split_names(column: str, root: Path) -> Splits:
    place = make(column, root)
    expected = sizes(opened(column, place))
    if column == "CSV":
        text = place.read_text()
        place.write_text(text.replace(",train\n", ",Training\n").replace(",val\n", ",VALID\n"))
    else:
        rename(root, {"train": "Train", "val": "Validation"})
    splits = opened(column, place)
    assert sizes(splits) == expected
    return splits


@cell("Files of systems and editors: `._x.png`, `.DS_Store`, `__MACOSX/`, `.idea/`", "read", *ALL)
def leftovers(column: str, root: Path) -> Splits:
    place = make(column, root)
    expected = sizes(opened(column, place))
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7 resource")
    for folder in ("__MACOSX", ".idea", "train/__MACOSX"):
        (root / folder / "a").mkdir(parents=True, exist_ok=True)
        (root / folder / "a" / "x.png").write_bytes(b"x")
        (root / folder / "misc.xml").write_text("<project/>")
        (root / folder / "notes.json").write_text("{}")
    (root / ".DS_Store").write_bytes(b"x")
    for index in root.glob(".rmt-*"):
        index.unlink()
    splits = opened(column, place)
    assert sizes(splits) == expected
    return splits


def texts(root: Path) -> list[Path]:
    suffixes = (".txt", ".csv", ".json", ".yaml", ".xml")
    return [p for p in root.rglob("*") if p.suffix in suffixes and not p.name.startswith(".")]


@cell("Text with a byte-order mark, or in UTF-16", "read", "CSV", "COCO", "YOLO", "VOC", "masks")
def marks(column: str, root: Path) -> Splits:
    place = make(column, root)
    expected = opened(column, place)
    originals = {path: path.read_text(encoding="utf-8") for path in texts(root)}
    for encoding in ("utf-8-sig", "utf-16"):
        for path, text in originals.items():
            text = text.replace("encoding='utf-8'", f"encoding='{encoding.removesuffix('-sig')}'")
            path.write_text(text.replace("\n", "\r\n"), encoding=encoding)
        splits = opened(column, place)
        assert splits.classes == expected.classes
        assert sizes(splits) == sizes(expected)
    return splits


@cell("A class list in another encoding than UTF-8", "refused", "CSV", "YOLO", "VOC", "masks",
      words="not in UTF-8")  # fmt: skip
def other_encoding(column: str, root: Path) -> Splits:
    place = make(column, root)
    named = {"CSV": place, "YOLO": root / "data.yaml"}.get(column, root / "classes.txt")
    named.write_bytes(named.read_bytes() + "# süß\n".encode("latin-1"))
    return opened(column, place)


@cell("An image that is empty or cut off", "left out", *ALL)
def damaged(column: str, root: Path) -> Splits:
    """It is named at the start, or when it is read; training takes the next one."""
    if column in ("webdataset", "Parquet"):
        return _damaged_inside(column, root)
    place = make(column, root)
    bad = images_of(root, "train")[1]
    bad.write_bytes(b"" if column == "YOLO" else bad.read_bytes()[:60])
    splits = opened(column, place)
    if not splits.findings.left_out:
        _read_all(column, splits, bad.name)
    return splits


def _damaged_inside(column: str, root: Path) -> Splits:
    from rmt.classification import datasets
    from rmt.classification.datasets import parquet, webdataset

    module = {"webdataset": webdataset, "Parquet": parquet}[column]
    as_png = module.as_png
    done: list[bytes] = []

    def cut(image: np.ndarray) -> bytes:
        done.append(as_png(image))
        return done[-1][:40] if len(done) == 2 else done[-1]

    module.as_png = cut
    try:
        place = make(column, root)
    finally:
        module.as_png = as_png
    assert datasets.FORMATS
    splits = opened(column, place)
    _read_all(column, splits, "blue_1")
    return splits


def _read_all(column: str, splits: Splits, name: str) -> None:
    """Let the loaders' readers meet the damaged image, and count it as they do."""
    task, _ = COLUMNS[column]
    from rmt.data.bad_samples import EvalReader

    reader = EvalReader(splits.train.image, count=len(splits.train), max_bad_samples=3)
    read = [reader(i) for i in range(len(splits.train))]
    assert task
    assert read.count(None) == int(reader.bad.flags.sum()) == 1
    assert name in splits.train.name(read.index(None))
    splits.findings.fault("unreadable sample", name)


@cell("An image that is named and not there", "left out", "CSV", "COCO", "VOC")
@cell("An image that is named and not there", "left out", "YOLO", words="1 absent image (")
def absent(column: str, root: Path) -> Splits:
    place = make(column, root)
    gone = images_of(root, "train")[1]
    if column == "YOLO":
        names = [str(path.relative_to(root)) for path in images_of(root, "train")]
        (root / "train.txt").write_text("\n".join(names))
        described = (root / "data.yaml").read_text()
        (root / "data.yaml").write_text(described.replace("images/train", "train.txt"))
    gone.unlink()
    splits = opened(column, place)
    if column == "CSV":
        _read_all(column, splits, gone.name)
    return splits


@cell("An image outside of the data set: `..`, an absolute path, a link to the file", "left out",
      "CSV", "COCO", "YOLO", "VOC", words=" outside of the data set (")  # fmt: skip
def outside(column: str, root: Path) -> Splits:
    for way in ("up", "absolute", "link"):
        place = make(column, root / way / "set", images=4)
        own = root / way / "set"
        images = images_of(own, "train")
        stored = {path.name: path.relative_to(own).as_posix() for path in images}
        first = images[0]
        secret = root / way / f"secret{first.suffix}"
        first.rename(secret)
        if way == "link":
            first.symlink_to(secret)
        elif way == "up":
            start = own if column in ("CSV", "YOLO") else first.parent
            stored[first.name] = os.path.relpath(secret, start)
        else:
            stored[first.name] = str(secret)
        _name_as(column, own, place, stored)
        for path in own.rglob(f"{first.stem}.xml"):  # else its name alone tells the image
            path.rename(path.with_name("renamed.xml"))
        splits = opened(column, place, **({"keep_empty": True} if column != "CSV" else {}))
        assert len(splits.train) == len(images) - 1, way
        read = {os.path.realpath(splits.train.name(i)) for i in range(len(splits.train))}
        assert read == {os.path.realpath(path) for path in images[1:]}, way
    return splits


STRANGE = "größe 1 (2)#%.png"


@cell("Names with blanks, umlauts and signs", "read", *ALL)
def strange_names(column: str, root: Path) -> Splits:
    place = make(column, root, images=4)
    expected = sizes(opened(column, place))
    if column in ("webdataset", "Parquet"):
        return opened(column, place)  # a name is part of the file
    _rename_first(column, root, place, STRANGE, STRANGE)
    splits = opened(column, place)
    assert sizes(splits) == expected
    assert any(STRANGE.rsplit(".", 1)[0] in splits.train.name(i) for i in range(expected[0]))
    for i in range(len(splits.train)):
        splits.train.image(i)
    return splits


def _rename_first(column: str, root: Path, place: Path, stored: str, named: str) -> None:
    """Rename a training image, and its labels, and call it so in what names it."""
    image = images_of(root, "train")[0]
    stem = stored.rsplit(".", 1)[0]
    for path in [p for p in root.rglob("*") if p.stem == image.stem and p != image]:
        path.rename(path.with_name(stem + path.suffix))
    stored = stem + image.suffix
    image.rename(image.with_name(stored))
    named = named.rsplit(".", 1)[0] + image.suffix
    for text in texts(root):
        content = text.read_text(encoding="utf-8")
        quoted = json.dumps(named)[1:-1] if text.suffix == ".json" else named
        text.write_text(content.replace(image.name, quoted), encoding="utf-8")


#: How a name may have been written on another machine.
WAYS = {
    "backslashes": lambda folder, name: f"{folder}\\{name}",
    "quoted": lambda folder, name: f"{folder}/{quote(name)}",
    "upward": lambda folder, name: f"..\\..\\{folder}\\{name}",
    "absolute": lambda folder, name: f"C:\\data\\{folder}\\{name}",
    "decomposed": lambda folder, name: f"{folder}/{unicodedata.normalize('NFD', name)}",
    "composed": lambda folder, name: f"{folder}/{unicodedata.normalize('NFC', name)}",
}


@cell("Names as other machines write them: `\\`, `%20`, `..`, `C:`, NFC and NFD", "read",
      "CSV", "COCO", "YOLO", "VOC")  # fmt: skip
def names_of_others(column: str, root: Path) -> Splits:
    for way, write in WAYS.items():
        own = root / way
        place = make(column, own, images=4)
        images = images_of(own, "train")
        stored = {}
        for i, path in enumerate(images):
            target = path.with_name(f"é {i}{path.suffix}")
            for other in [p for p in own.rglob("*") if p.stem == path.stem and p != path]:
                other.rename(other.with_name(target.stem + other.suffix))
            path.rename(target)
            stored[path.name] = write(path.parent.relative_to(own).as_posix(), target.name)
        expected = len(images)
        _name_as(column, own, place, stored)
        splits = opened(column, place, **({"keep_empty": True} if column != "CSV" else {}))
        assert len(splits.train) == expected, way
        for i in range(expected):
            splits.train.image(i)
        assert not splits.findings.left_out, way
    return splits


def _name_as(column: str, root: Path, place: Path, stored: dict[str, str]) -> None:
    if column == "CSV":
        rows = list(csv.reader(io.StringIO(place.read_text())))
        rows = [[stored.get(Path(row[0]).name, row[0]), *row[1:]] for row in rows]
        with place.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
    elif column == "YOLO":
        listing = root / "train.txt"
        listing.write_text("\r\n".join(stored.values()), encoding="utf-8")
        described = (root / "data.yaml").read_text()
        (root / "data.yaml").write_text(described.replace("images/train", "train.txt"))
    elif column == "COCO":
        path = root / "annotations" / "train.json"
        content = json.loads(path.read_text())
        for entry in content["images"]:
            entry["file_name"] = stored[entry["file_name"]]
        path.write_text(json.dumps(content), encoding="utf-8")
    else:
        for path in (root / "train").glob("*.xml"):
            text = path.read_text(encoding="utf-8")
            for old, new in stored.items():
                text = text.replace(f"<filename>{old}<", f"<filename>{new}<")
            path.write_text(text, encoding="utf-8")


@cell("Links to folders, and folders in folders", "read", *FILES)
def links(column: str, root: Path) -> Splits:
    place = make(column, root / "set")
    expected = sizes(opened(column, place))
    for folder in [p for p in (root / "set").rglob("*") if p.is_dir()]:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if not files or folder.name in ("annotations", "set"):
            continue
        (folder / "site 1").mkdir()
        elsewhere = root / "elsewhere" / folder.relative_to(root / "set")
        elsewhere.mkdir(parents=True)
        for path in files:
            number = int(path.stem.rsplit("_", 1)[-1])
            path.rename((folder / "site 1" if number % 2 else elsewhere) / path.name)
        (folder / "linked").symlink_to(elsewhere)
    splits = opened(column, place)
    assert sizes(splits) == expected
    return splits


@cell("`.jfif`, `.avif`, `.jp2`", "read", *(c for c in ALL if c not in ("webdataset", "Parquet")))
def other_suffixes(column: str, root: Path) -> Splits:
    place = make(column, root)
    expected = sizes(opened(column, place))
    for path, suffix in zip(images_of(root, "train"), (".jfif", ".avif", ".jp2"), strict=False):
        image = Image.open(path)
        image.save(path.with_suffix(suffix), **({"format": "JPEG"} if suffix == ".jfif" else {}))
        path.unlink()
        for text in texts(root):
            content = text.read_text()
            text.write_text(content.replace(path.name, path.with_suffix(suffix).name))
    splits = opened(column, place)
    assert sizes(splits) == expected
    for i in range(expected[0]):
        assert splits.train.image(i).mode == "RGB"
    return splits


@cell("Files that may be images and are not read: `.heic` without its plugin, `.mp4`", "counted",
      "class folders", "YOLO", "masks", words="1 .mp4 file (not read, first clip.mp4)")  # fmt: skip
def not_read(column: str, root: Path) -> Splits:
    place = make(column, root)
    images_of(root, "train")[0].with_name("clip.mp4").write_bytes(b"x")
    return opened(column, place)


@cell("Animated GIF and WebP: the first frame", "counted", "class folders", "YOLO", "masks",
      words="1 animated file (the first frame is read, first ")  # fmt: skip
def animated(column: str, root: Path) -> Splits:
    place = make(column, root)
    path = images_of(root, "train")[1]
    first = Image.open(path).convert("RGB")
    second = Image.new("RGB", first.size, "white")
    path.unlink()
    first.save(path.with_suffix(".webp"), save_all=True, append_images=[second], lossless=True)
    splits = opened(column, place)
    at = next(i for i in range(len(splits.train)) if splits.train.name(i).endswith(".webp"))
    assert np.array_equal(np.asarray(splits.train.image(at)), np.asarray(first))
    return splits


@cell("Images that nothing labels, or in the folder of no split", "counted", "class folders",
      "COCO", "YOLO", "VOC", "masks")  # fmt: skip
def unused(column: str, root: Path) -> Splits:
    place = make(column, root)
    expected = sizes(opened(column, place))
    path = images_of(root, "train")[0]
    if column in ("COCO", "VOC"):
        path.with_name("nobody.png").write_bytes(path.read_bytes())
    else:
        top = root / "images" if (root / "images").is_dir() else root
        (top / "extra" / "a").mkdir(parents=True)
        (top / "extra" / "a" / path.name).write_bytes(path.read_bytes())
    splits = opened(column, place)
    assert sizes(splits) == expected
    assert "image not used" in splits.describe()
    return splits


@cell("A class without images where a model is evaluated", "counted", *ALL)
def rare_class(column: str, root: Path) -> Splits:
    """The classes are the model's: one that does not occur counts none, and is named."""
    if column == "masks":
        place = make(column, root)
        (root / "classes.txt").unlink()  # masks number the model's classes
        splits = opened(column, place, classes=["a", "b", "c", "rare"], val_fraction=1.0)
        assert splits.classes == ("a", "b", "c", "rare")
        splits.findings.note("named by the metrics")  # only they see every pixel
        return splits
    place = make(column, root)
    known = [*opened(column, place).classes, "rare"]
    if column in ("COCO", "YOLO", "VOC"):
        known = ["rare", *known[:-1]]
        (root / "classes.txt").unlink(missing_ok=True)
    if column in ("webdataset", "Parquet"):
        return _rare_number(column, root)
    splits = opened(column, place, classes=known, val_fraction=1.0)
    assert splits.classes == tuple(known)
    assert "(rare)" in splits.describe()
    return splits


def _rare_number(column: str, root: Path) -> Splits:
    """Files without class names number the model's."""
    place = root / "numbers"
    place.mkdir(parents=True)
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    if column == "webdataset":
        with tarfile.open(place / "test-0.tar", "w") as archive:
            for i, label in enumerate((0, 2)):
                for name, content in (
                    (f"{i}.png", picture.getvalue()),
                    (f"{i}.cls", b"%d" % label),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    else:
        import pyarrow
        from pyarrow.parquet import write_table

        image = [{"bytes": picture.getvalue(), "path": "x.png"}] * 2
        write_table(pyarrow.table({"image": image, "label": [0, 2]}), place / "test-0.parquet")
    splits = opened(column, place, classes=["ant", "bee", "cow", "doe"])
    assert splits.classes == ("ant", "bee", "cow", "doe")
    assert list(splits.evaluated.labels) == [0, 2]
    assert "2 classes without images to evaluate (bee, doe)" in splits.describe()
    return splits


@cell("More that cannot be used than `data.max_bad_samples`", "refused",
      "CSV", "webdataset", "Parquet", "COCO", "YOLO", "VOC", "masks",
      words="data.max_bad_samples=0")  # fmt: skip
def too_many(column: str, root: Path) -> Splits:
    place = make(column, root)
    first = images_of(root, "train")[0] if column not in ("webdataset", "Parquet") else None
    if column == "CSV":
        place.write_text(place.read_text() + ",nobody,train\n")
    elif column in ("COCO", "VOC"):
        first.unlink()
    elif column == "YOLO":
        first.write_bytes(b"")
    elif column == "masks":
        (root / "masks" / "train" / f"{first.stem}.png").unlink()
    elif column == "webdataset":
        (root / "classnames.txt").write_text("one\ntwo\n")
    else:
        import pyarrow
        from pyarrow.parquet import read_table, write_table

        path = root / "data" / "train-00000-of-00001.parquet"
        table = read_table(path)
        labels = pyarrow.array([-1, *table["label"].to_pylist()[1:]])
        write_table(table.set_column(1, "label", labels), path)
    return opened(column, place, max_bad_samples=0)


@cell("A whole file that is broken: JSON, `data.yaml`, a tar or Parquet file", "refused",
      "webdataset", "Parquet", "COCO", "YOLO")  # fmt: skip
@cell("A whole file that is broken: JSON, `data.yaml`, a tar or Parquet file", "left out", "VOC",
      words="1 broken XML file")  # fmt: skip
def broken_file(column: str, root: Path) -> Splits:
    place = make(column, root)
    pattern = {
        "webdataset": "*train*.tar",
        "Parquet": "data/train*",
        "COCO": "annotations/train.json",
        "YOLO": "data.yaml",
        "VOC": "train/train_0.xml",
    }[column]
    path = next(root.glob(pattern))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 if column == "webdataset" else -9])
    if column == "YOLO":
        path.write_bytes(b"names: [a, {")
    return opened(column, place, format=COLUMNS[column][1])
