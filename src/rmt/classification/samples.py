"""Labelled images, and the parts of a data set: to train on, to choose the weights, to judge."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePath

import numpy as np
from PIL import Image
from torch import Tensor

from rmt.data.images import decode_image, read_image
from rmt.data.splits import Splits
from rmt.files import digest_of_samples, identity

#: What folders and files call the parts.
PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True, slots=True)
class Packed(ABC):
    """An image inside a larger file; ``str()`` names both.

    Attributes:
        file: the larger one.
        name: of the image in it.
    """

    file: Path
    name: str

    @abstractmethod
    def read(self) -> bytes:
        """Return the bytes of the image file; raises ``ValueError`` naming what cannot be read."""


@dataclass(frozen=True)
class EvaluationRule:
    """Which predictions are right; this one: the label, among all classes.

    A data set with another protocol comes with a subclass.

    Attributes:
        groups: names of equally long runs of images that are also evaluated by themselves.
    """

    groups: tuple[str, ...] = ()

    def apply(self, logits: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and labels (B,) of images (B,) as they are to be compared."""
        return logits, labels

    def summarise(self, top1: Mapping[str, float]) -> dict[str, float]:
        """Return further metrics from the top-1 of each group in percent."""
        return {}

    def take(self, indices: Sequence[int]) -> EvaluationRule:
        """Return the rule for some of the images, in no groups."""
        return self


@dataclass(frozen=True)
class Samples:
    """Labelled images of one split.

    Attributes:
        items: a path, an image within a larger file, or an array (H, W) of 8-bit grey, an image.
        labels: class index of each.
        classes: class names.
        rule: which predictions are right.
    """

    items: Sequence[Path | Packed | np.ndarray] | np.ndarray
    labels: Sequence[int]
    classes: tuple[str, ...]
    rule: EvaluationRule = EvaluationRule()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> tuple[Image.Image, int]:
        """Return an image as RGB and its label; raises as :meth:`image`."""
        return self.image(index), self.labels[index]

    def image(self, index: int) -> Image.Image:
        """Return an image as RGB; raises ``ValueError`` naming a file that cannot be read."""
        item = self.items[index]
        if isinstance(item, np.ndarray):
            return Image.fromarray(item).convert("RGB")
        if isinstance(item, Packed):
            return decode_image(BytesIO(item.read()), name=str(item))
        return read_image(item)

    def name(self, index: int) -> str:
        """Return the path, the place in a larger file, or the number of an image without either."""
        item = self.items[index]
        return f"#{index}" if isinstance(item, np.ndarray) else str(item)

    def place(self, index: int) -> PurePath:
        """Return ``CLASS/FILE`` of an image, whatever it lies in."""
        item = self.items[index]
        name = item.name if isinstance(item, Packed) else self.name(index)
        return PurePath(self.classes[self.labels[index]], PurePath(name).name)

    def digest(self) -> str:
        """Return the digest of names, sizes and labels (of arrays: their content)."""
        labelled = zip(self.items, self.labels, strict=True)
        return digest_of_samples((self._identity(item), int(label)) for item, label in labelled)

    def _identity(self, item: Path | Packed | np.ndarray) -> object:
        if isinstance(item, np.ndarray):
            return item.tobytes()
        if isinstance(item, Packed):
            return identity(item.file), item.name
        return identity(item)

    def take(self, indices: Sequence[int]) -> Samples:
        """Return some of the images, in no groups."""
        return replace(
            self,
            items=[self.items[i] for i in indices],
            labels=[self.labels[i] for i in indices],
            rule=self.rule.take(indices),
        )


def eval_only(samples: Samples) -> Splits[Samples]:
    """Return splits without training images."""
    return Splits(None, samples, samples)


def splits_of(parts: Mapping[str, Samples], val_fraction: float, *, where: Path) -> Splits[Samples]:
    """Return the parts that a data set brings, a missing ``val`` held out of ``train``.

    Without ``train`` there is something to judge only.

    Raises:
        ValueError: if there is one class only, or too little to hold anything out.
    """
    train, val, test = (parts.get(part) for part in PARTS)
    judged = val or test
    if train is None:
        if judged is None:
            raise ValueError(f"{where} holds no images")
        return Splits(None, judged, test)
    if len(set(train.labels)) < 2:
        name = train.classes[train.labels[0]]
        raise ValueError(f"{where} has one class only ({name!r}); a classifier needs two or more")
    return Splits(train, val, test) if val else replace(split(train, val_fraction), test=test)


def split(samples: Samples, val_fraction: float) -> Splits[Samples]:
    """Hold out a share of each class, the same images each time; 1 holds out all to be judged."""
    if val_fraction == 1:
        return Splits(None, samples)
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
        test_size=max(val_fraction, len(set(samples.labels)) / len(samples)),
        stratify=samples.labels,
        random_state=0,
    )
    return Splits(samples.take(sorted(train)), samples.take(sorted(val)))
