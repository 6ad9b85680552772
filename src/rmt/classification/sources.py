"""Where labelled images come from: folders, a CSV, tar and Parquet files, known data sets."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rmt.classification.imagenet_sets import class_folders, corruptions, real_labels
from rmt.classification.packed import files_in
from rmt.classification.parquet import open_parquet
from rmt.classification.recipe import Data
from rmt.classification.samples import PARTS, Samples, split, splits_of
from rmt.classification.shards import holds_keys, open_tar, open_webdataset
from rmt.data.images import SUFFIXES, images_in
from rmt.data.splits import Splits

# Where Debian's package dataset-fashion-mnist puts the files.
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_PACKED = {"tar": open_tar, "webdataset": open_webdataset, "parquet": open_parquet}
_TEST_SETS = {
    "imagenet": class_folders,
    "imagenet-real": real_labels,
    "imagenet-c": corruptions,
}


def open_splits(data: Data) -> Splits[Samples]:
    """Find the images that a recipe's ``data`` names, and split them.

    A split that the data brings is kept; otherwise ``val_fraction`` of each class is held out,
    the same images each time (1: everything is there to be judged).

    Raises:
        ValueError: if there is nothing, an empty class, one class only, or an unknown layout.
    """
    root = Path(data.root) if data.root else None
    kind = data.format if data.format != "auto" else _guess(root)
    if kind == "digits":
        return _with_validation(*_digits(), data.val_fraction)
    if kind == "fashion-mnist":
        return _with_validation(*_fashion(root, data.download), data.val_fraction)
    if root is None or not root.exists():
        raise ValueError(
            f"data.root {data.root!r} does not exist; name a folder of class folders, of tar or "
            "Parquet files, or a CSV file"
        )
    if kind in _TEST_SETS:
        return _TEST_SETS[kind](root)
    if kind in _PACKED:
        return _packed(root, kind, data.val_fraction)
    if kind == "csv":
        return _csv(root, data.val_fraction)
    return _folder(root, data.val_fraction)


def _guess(root: Path | None) -> str:
    if root is None:
        raise ValueError("data.root is empty; name a folder of class folders or a CSV file")
    if root.suffix.lower() == ".csv":
        return "csv"
    if (root / "train-images-idx3-ubyte.gz").is_file():
        return "fashion-mnist"
    if _has_class_folders(_part(root, "train") or root):
        return "folder"  # whatever archives lie beside
    if tars := files_in(root, ".tar"):
        return "webdataset" if holds_keys(tars[0]) else "tar"
    return "parquet" if files_in(root, ".parquet") else "folder"


def _has_class_folders(root: Path) -> bool:
    parts = {"data", *(name for names in PARTS.values() for name in names)}
    return root.is_dir() and any(
        file.suffix.lower() in SUFFIXES
        for folder in root.iterdir()
        if folder.is_dir() and folder.name not in parts
        for file in folder.iterdir()
    )


def _packed(root: Path, kind: str, val_fraction: float) -> Splits[Samples]:
    """Open large files; a part to judge may also lie beside them in class folders."""
    parts = _PACKED[kind](root)
    for part in set(PARTS) - {"train"} - set(parts):
        if at := _part(root, part):
            parts[part] = _class_folders(at, parts["train"].classes if "train" in parts else None)
    return splits_of(parts, val_fraction, where=root)


def _folder(root: Path, val_fraction: float) -> Splits[Samples]:
    at = {part: folder for part in PARTS if (folder := _part(root, part)) and _folders(folder)}
    if not at:  # or they are names of classes
        return splits_of({"train": _class_folders(root)}, val_fraction, where=root)
    parts: dict[str, Samples] = {}
    for part, folder in at.items():
        parts[part] = _class_folders(folder, parts["train"].classes if "train" in parts else None)
    return splits_of(parts, val_fraction, where=root)


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _part(root: Path, part: str) -> Path | None:
    return next((root / name for name in PARTS[part] if (root / name).is_dir()), None)


def _class_folders(root: Path, classes: tuple[str, ...] | None = None) -> Samples:
    folders = _folders(root)
    if not folders:
        raise ValueError(f"{root} holds no class folders (one folder a class, images inside)")
    names = tuple(p.name for p in folders)
    known = classes or names
    if strange := sorted(set(names) - set(known)):
        raise ValueError(f"{root} has classes that the training part has not: {strange[:5]}")
    items, labels = [], []
    for folder in folders:
        images = images_in(folder)
        if not images:
            raise ValueError(
                f"class folder {folder} holds no image ({', '.join(SUFFIXES)}); "
                "fill it or remove it"
            )
        items += images
        labels += [known.index(folder.name)] * len(images)
    return Samples(items, labels, known)


def _csv(path: Path, val_fraction: float) -> Splits[Samples]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write the mark
            rows = list(csv.DictReader(file))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8: {error}; save it so") from error
    if not rows or not {"path", "label"} <= set(rows[0]):
        raise ValueError(
            f"{path} must begin with a line naming the columns path and label (and maybe split); "
            f"it has {list(rows[0]) if rows else 'no rows'}"
        )
    for line, row in enumerate(rows, 2):
        if not row["path"] or not row["label"]:
            raise ValueError(f"{path} line {line} has no path or no label: {row}")
    labels = {row["label"] for row in rows}
    numbers = all(label.isdecimal() for label in labels)
    classes = tuple(sorted(labels, key=int if numbers else None))
    parts: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        parts.setdefault((row.get("split") or "train").strip().lower(), []).append(row)

    def samples(found: Sequence[dict[str, str]]) -> Samples:
        items = [path.parent / row["path"] for row in found]
        return Samples(items, [classes.index(row["label"]) for row in found], classes)

    if unknown := set(parts) - {name for names in PARTS.values() for name in names}:
        raise ValueError(f"{path} has splits {sorted(unknown)}; use train, val and test")
    by_part = {
        part: [row for name in names for row in parts.get(name, [])]
        for part, names in PARTS.items()
    }
    if not by_part["train"]:
        raise ValueError(f"{path} has no rows of the split 'train'")
    found = {part: samples(rows) for part, rows in by_part.items() if rows}
    return splits_of(found, val_fraction, where=path)


def _digits() -> tuple[Samples, Samples]:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    everything = Samples(images, digits.target.tolist(), tuple(map(str, range(10))))
    parts = split(everything, 0.2)
    return parts.train, parts.val


def _fashion(root: Path | None, download: bool) -> tuple[Samples, Samples]:
    if download:
        from torchvision.datasets import FashionMNIST

        if root is None:
            raise ValueError("data.root is empty; name a folder to download Fashion-MNIST into")
        FashionMNIST(str(root), download=True)
        root = root / "FashionMNIST" / "raw"
    root = root or _DEBIAN_FASHION
    if not (root / "train-images-idx3-ubyte.gz").is_file():
        raise ValueError(
            f"no Fashion-MNIST in {root}: install Debian's package dataset-fashion-mnist, name the "
            "folder of its IDX .gz files in data.root, or allow --data.download true"
        )
    return _idx(root, "train"), _idx(root, "t10k")


def _idx(root: Path, part: str) -> Samples:
    """Read images and labels in the format of MNIST: a head of big-endian numbers, then bytes."""
    images, labels = (root / f"{part}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    try:
        with gzip.open(images) as file:
            count, height, width = np.frombuffer(file.read(16), dtype=">i4")[1:]
            pixels = np.frombuffer(file.read(), dtype=np.uint8).reshape(count, height, width)
        with gzip.open(labels) as file:
            file.read(8)
            classes = np.frombuffer(file.read(), dtype=np.uint8).tolist()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{images} or {labels.name} cannot be read: {error}") from error
    if len(classes) != count:
        raise ValueError(f"{images} holds {count} images and {labels.name} {len(classes)} labels")
    return Samples(pixels, classes, _FASHION_CLASSES)


def _with_validation(train: Samples, test: Samples, val_fraction: float) -> Splits[Samples]:
    return replace(split(train, val_fraction), test=test)
