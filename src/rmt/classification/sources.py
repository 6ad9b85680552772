"""Where labelled images come from: class folders, a CSV, digits, Fashion-MNIST."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rmt.classification.recipe import Data
from rmt.images import SUFFIXES, images_in, read_image

_TRAIN, _VAL, _TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")
# Where Debian's package dataset-fashion-mnist puts the files.
_DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


@dataclass(frozen=True)
class Samples:
    """Labelled images of one split.

    Attributes:
        items: a path, or an array (H, W) of 8-bit grey, an image.
        labels: class index of each.
        classes: class names.
        allowed: the classes that count as answers; empty for all.
        accepted: for each image the classes that are right; empty if only its label is.
    """

    items: Sequence[Path | np.ndarray] | np.ndarray
    labels: Sequence[int]
    classes: tuple[str, ...]
    allowed: tuple[int, ...] = ()
    accepted: tuple[frozenset[int], ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Return an image as RGB; raises ``ValueError`` naming a file that cannot be read."""
        item = self.items[index]
        if isinstance(item, np.ndarray):
            return Image.fromarray(item).convert("RGB")
        return read_image(item)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Return an image and its label."""
        return self.image(index), self.labels[index]

    def name(self, index: int) -> str:
        """Return the path, or the number of an image that has none."""
        item = self.items[index]
        return f"#{index}" if isinstance(item, np.ndarray) else str(item)

    def take(self, indices: Sequence[int]) -> Samples:
        """Return some of the images."""
        return replace(
            self,
            items=[self.items[i] for i in indices],
            labels=[self.labels[i] for i in indices],
            accepted=tuple(self.accepted[i] for i in indices) if self.accepted else (),
        )


@dataclass(frozen=True)
class Splits:
    """The parts of a data set; ``test`` is None where the data has no third part."""

    train: Samples
    val: Samples
    test: Samples | None = None


def open_splits(data: Data) -> Splits:
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
            f"data.root {data.root!r} does not exist; name a folder of class folders or a CSV file"
        )
    if kind.startswith("imagenet"):
        # Imported here, for it builds on this module.
        from rmt.classification.imagenet_sets import class_folders, real_labels

        return real_labels(root) if kind == "imagenet-real" else class_folders(root)
    if kind == "csv":
        return _csv(root, data.val_fraction)
    return _folder(root, data.val_fraction)


def _guess(root: Path | None) -> str:
    if root is None:
        raise ValueError("data.root is empty; name a folder of class folders or a CSV file")
    if root.suffix.lower() == ".csv":
        return "csv"
    return "fashion-mnist" if (root / "train-images-idx3-ubyte.gz").is_file() else "folder"


def _folder(root: Path, val_fraction: float) -> Splits:
    train_root = _part(root, _TRAIN)
    if train_root is None:
        return _split(_class_folders(root), val_fraction)
    train = _class_folders(train_root)
    others = [_part(root, names) for names in (_VAL, _TEST)]
    val, test = (None if at is None else _class_folders(at, train.classes) for at in others)
    if val is None:
        split = _split(train, val_fraction)
        return replace(split, test=test)
    return Splits(train, val, test)


def _part(root: Path, names: Sequence[str]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _class_folders(root: Path, classes: tuple[str, ...] | None = None) -> Samples:
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
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
    samples = Samples(items, labels, known)
    return samples if classes else _checked(samples, root)


def _csv(path: Path, val_fraction: float) -> Splits:
    with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write the mark
        rows = list(csv.DictReader(file))
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

    def samples(names: Sequence[str]) -> Samples | None:
        found = [row for name in names for row in parts.get(name, [])]
        if not found:
            return None
        items = [path.parent / row["path"] for row in found]
        return Samples(items, [classes.index(row["label"]) for row in found], classes)

    if unknown := set(parts) - {*_TRAIN, *_VAL, *_TEST}:
        raise ValueError(f"{path} has splits {sorted(unknown)}; use train, val and test")
    train, val, test = samples(_TRAIN), samples(_VAL), samples(_TEST)
    if train is None:
        raise ValueError(f"{path} has no rows of the split 'train'")
    _checked(train, path)
    return Splits(train, val, test) if val else replace(_split(train, val_fraction), test=test)


def _digits() -> tuple[Samples, Samples]:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    everything = Samples(images, digits.target.tolist(), tuple(map(str, range(10))))
    split = _split(everything, 0.2)
    return split.train, split.val


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


def _with_validation(train: Samples, test: Samples, val_fraction: float) -> Splits:
    return replace(_split(train, val_fraction), test=test)


def _split(samples: Samples, val_fraction: float) -> Splits:
    """Hold out a share of each class, the same images each time; 1 holds out all to be judged."""
    if val_fraction == 1:
        return Splits(samples.take([]), samples)
    if not 0 < val_fraction < 1:
        raise ValueError(f"data.val_fraction is {val_fraction}; it must lie between 0 and 1")
    from sklearn.model_selection import train_test_split

    count = Counter(samples.labels)
    label = min(count, key=count.__getitem__)
    if count[label] < 2:
        raise ValueError(
            f"class {samples.classes[label]!r} has one image only, which cannot be split into "
            "train and val"
        )
    train, val = train_test_split(
        range(len(samples)),
        test_size=max(val_fraction, len(samples.classes) / len(samples)),
        stratify=samples.labels,
        random_state=0,
    )
    return Splits(samples.take(sorted(train)), samples.take(sorted(val)))


def _checked(samples: Samples, where: Path) -> Samples:
    if len(set(samples.labels)) < 2:
        raise ValueError(
            f"{where} has one class only ({samples.classes[0]!r}); a classifier needs two or more"
        )
    return samples
