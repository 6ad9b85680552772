"""Fashion-MNIST in its own files: 70,000 grey images of 28x28 pixels, an official test split."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rmt.classification.datasets.drawn import Drawn
from rmt.classification.recipe import Data
from rmt.classification.samples import Samples
from rmt.data.formats import Format, Source
from rmt.data.splits import Split

# Where Debian's package dataset-fashion-mnist puts the files.
_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_PREFIX: dict[Split, str] = {"train": "train", "test": "t10k"}
_IMAGES, _LABELS = "images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"
_SIGN = f"train-{_IMAGES}"


def sign(root: Path) -> str | None:
    """Return the file of the training images, if it is there."""
    return _SIGN if (root / _SIGN).is_file() else None


def read(source: Source[Data]) -> Mapping[Split, Samples]:
    """Read the training and the test split.

    Raises:
        ValueError: if the files are neither in ``data.root`` nor installed, or damaged.
    """
    root = source.root if source.data.root else _DEBIAN
    if source.data.download:
        from torchvision.datasets import FashionMNIST

        if not source.data.root:
            raise ValueError("data.root is empty; name a folder to download Fashion-MNIST into")
        FashionMNIST(str(root), download=True)
        root = root / "FashionMNIST" / "raw"
    if sign(root) is None:
        raise ValueError(
            f"no Fashion-MNIST in {root}: install Debian's package dataset-fashion-mnist, name the "
            "folder of its IDX .gz files in data.root, or allow --data.download true"
        )
    return {split: _idx(root, prefix) for split, prefix in _PREFIX.items()}


def _idx(root: Path, prefix: str) -> Samples:
    """Read images and labels in the format of MNIST: a head of big-endian numbers, then bytes."""
    images, labels = (root / f"{prefix}-{kind}" for kind in (_IMAGES, _LABELS))
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
    return Samples(pixels, classes, _CLASSES)


def write(root: Path, split: Split, drawn: Drawn) -> Path:
    """Write a split, for ``val`` the test split, in grey; classes are numbered as they come."""
    root.mkdir(parents=True, exist_ok=True)
    grey = [image.mean(-1).astype(np.uint8) for images in drawn.values() for image in images]
    classes = bytes(label for label, images in enumerate(drawn.values()) for _ in images)
    pixels = np.stack(grey)
    head = struct.pack(">IIII", 2051, *pixels.shape)
    prefix = _PREFIX["train" if split == "train" else "test"]
    (root / f"{prefix}-{_IMAGES}").write_bytes(gzip.compress(head + pixels.tobytes()))
    head = struct.pack(">II", 2049, len(classes))
    (root / f"{prefix}-{_LABELS}").write_bytes(gzip.compress(head + classes))
    return root


FORMAT = Format(
    name="fashion-mnist",
    title="Fashion-MNIST",
    layout=f"{_SIGN} and its like",
    sign=sign,
    read=read,
    write=write,
    needs_root=False,
)
