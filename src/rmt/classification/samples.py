"""Labelled images, and the rule that says which predictions are right."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rmt.data.images import decode_image, read_image
from rmt.files import digest_of_samples, identity


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

    def label(self, index: int) -> object:
        """Return the name of an image's class."""
        return self.classes[self.labels[index]]

    def join(self, other: Samples) -> Samples:
        """Return these images and others of the same data set, by its plain rule."""
        return Samples([*self.items, *other.items], [*self.labels, *other.labels], self.classes)

    def take(self, indices: Sequence[int]) -> Samples:
        """Return some of the images, in no groups."""
        return replace(
            self,
            items=[self.items[i] for i in indices],
            labels=[self.labels[i] for i in indices],
            rule=self.rule.take(indices),
        )


def balanced(samples: Samples) -> Tensor:
    """Return a weight for each image, (N,): the inverse frequency of its class, on average 1."""
    labels = torch.tensor(samples.labels)
    counts = torch.bincount(labels, minlength=len(samples.classes)).double()
    return (len(labels) / ((counts > 0).sum() * counts))[labels]


def class_weights(samples: Samples) -> Tensor:
    """Return a weight for each class, (K,): as :func:`balanced`, and 0 without images."""
    weights = torch.zeros(len(samples.classes), dtype=torch.double)
    weights[torch.tensor(samples.labels)] = balanced(samples)
    return weights
