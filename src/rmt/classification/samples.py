"""Labelled images, and the rule that says which predictions are right."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any, ClassVar

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
        labels: class index of each; of :class:`MultiLabelSamples`, several.
        classes: class names.
        rule: which predictions are right.
    """

    items: Sequence[Path | Packed | np.ndarray] | np.ndarray
    labels: Sequence[Any]
    classes: tuple[str, ...]
    rule: EvaluationRule = EvaluationRule()
    #: Whether an image has any number of labels.
    multi_label: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def present(self) -> set[int]:
        """The classes that have an image."""
        return set(self.labels)

    @property
    def strata(self) -> Sequence[int]:
        """A class of each image, of each of which a share is held out."""
        return self.labels

    def read(self, index: int) -> tuple[Image.Image, Any]:
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
        return digest_of_samples(
            (self._identity(item), self._plain(label)) for item, label in labelled
        )

    def _plain(self, label: Any) -> object:
        return int(label)

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
        items, labels = [*self.items, *other.items], [*self.labels, *other.labels]
        return type(self)(items, labels, self.classes)

    def take(self, indices: Sequence[int]) -> Samples:
        """Return some of the images, in no groups."""
        return replace(
            self,
            items=[self.items[i] for i in indices],
            labels=[self.labels[i] for i in indices],
            rule=self.rule.take(indices),
        )


@dataclass(frozen=True)
class MultiLabelSamples(Samples):
    """Images that have any number of labels, also none.

    Attributes:
        labels: the class indices of each image.
    """

    multi_label: ClassVar[bool] = True

    @property
    def present(self) -> set[int]:
        """The classes that have an image."""
        return {label for own in self.labels for label in own}

    @property
    def strata(self) -> Sequence[int]:
        """The rarest class of each image; those without a label, or alone in theirs, are one."""
        count = Counter(label for own in self.labels for label in own)
        rarest = [
            min(own, key=lambda label: (count[label], label), default=-1) for own in self.labels
        ]
        size = Counter(rarest)
        common = max(size, key=size.__getitem__, default=-1)
        alone = {stratum for stratum, images in size.items() if images == 1}
        # One that is alone cannot be divided; nor can the rest if it is a single image.
        home = -1 if len(alone) > 1 or size[-1] > 1 else common
        return [home if stratum in alone else stratum for stratum in rarest]

    def read(self, index: int) -> tuple[Image.Image, Tensor]:
        """Return an image as RGB and its targets, (K,) of 0 and 1; raises as :meth:`image`."""
        return self.image(index), self.targets([index])[0]

    def targets(self, indices: Sequence[int] | None = None) -> Tensor:
        """Return 1 for each label of some images, or of all, and else 0: (B, K)."""
        chosen = range(len(self)) if indices is None else indices
        targets = torch.zeros(len(chosen), len(self.classes))
        for row, index in enumerate(chosen):
            targets[row, list(self.labels[index])] = 1
        return targets

    def place(self, index: int) -> PurePath:
        """Raise ``ValueError``: no folder of a class holds the image alone."""
        raise ValueError(f"{self.name(index)} may have several labels: token labels are for one")

    def label(self, index: int) -> object:
        """Return the names of an image's classes."""
        return [self.classes[label] for label in self.labels[index]]

    def _plain(self, label: Any) -> object:
        return [int(each) for each in label]


def balanced(samples: Samples) -> Tensor:
    """Return a weight for each image, (N,): the inverse frequency of its class, on average 1.

    Of an image with several labels it is the mean over them; having none is a class of its own.
    """
    if isinstance(samples, MultiLabelSamples):
        targets = samples.targets().double()
        targets = torch.cat([targets, (targets.sum(1, keepdim=True) == 0).double()], 1)
        each = (targets / targets.sum(0).clamp(min=1)).sum(1) / targets.sum(1)
        return each / each.mean()
    labels = torch.tensor(samples.labels)
    counts = torch.bincount(labels, minlength=len(samples.classes)).double()
    return (len(labels) / ((counts > 0).sum() * counts))[labels]


def class_weights(samples: Samples) -> Tensor:
    """Return a weight for each class, (K,): as :func:`balanced`, and 0 without images."""
    weights = torch.zeros(len(samples.classes), dtype=torch.double)
    weights[torch.tensor(samples.labels)] = balanced(samples)
    return weights
