"""Images with masks of one split."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from rmt.data.bad_samples import UNREADABLE
from rmt.data.images import read_image, read_image_like
from rmt.files import digest_of_samples, identity
from rmt.segmentation.masks import Colour, read_mask
from rmt.segmentation.segmenter import IGNORED


@dataclass(frozen=True)
class Samples:
    """Images with masks of one split.

    Attributes:
        images: a file per image.
        masks: a file per image.
        classes: class names.
        table: mask value -> class index, (256,).
        palette: RGB of each mask value, where the colours of masks are classes.
    """

    images: Sequence[Path]
    masks: Sequence[Path]
    classes: tuple[str, ...]
    table: np.ndarray = field(repr=False)
    palette: Sequence[Colour] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Image.Image:
        """Return an image as RGB; raises ``ValueError`` naming a file that cannot be read."""
        return read_image(self.images[index])

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an image (H, W, 3) and its labels (H, W), both of 8 bits.

        Raises:
            ValueError: naming the file that cannot be read, or both if their sizes differ.
        """
        labels = read_mask(self.masks[index], self.table, self.palette)
        image = np.array(read_image_like(self.images[index], labels.shape[::-1]))
        if image.shape[:2] != labels.shape:
            (h, w), (mask_h, mask_w) = image.shape[:2], labels.shape
            raise ValueError(
                f"mask {self.masks[index]} is {mask_w}x{mask_h} pixels, its image "
                f"{self.images[index]} {w}x{h}; they must be the same"
            )
        return image, labels

    def digest(self) -> str:
        """Return the digest of the names and sizes of images and masks."""
        files = zip(self.images, self.masks, strict=True)
        return digest_of_samples((identity(image), identity(mask)) for image, mask in files)

    def label(self, index: int) -> object:
        """Return name and size in bytes of an image's mask."""
        return identity(self.masks[index])

    def join(self, other: Samples) -> Samples:
        """Return these images and others of the same data set."""
        return replace(
            self, images=[*self.images, *other.images], masks=[*self.masks, *other.masks]
        )

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return str(self.images[index])

    def take(self, indices: Sequence[int]) -> Samples:
        """Return some of the images."""
        return replace(
            self,
            images=[self.images[i] for i in indices],
            masks=[self.masks[i] for i in indices],
        )


def check_labels(samples: Samples) -> None:
    """Refuse training masks that label one class alone: nothing could be learned from them.

    As a rule the first mask shows that they label more, and the rest is not read.

    Raises:
        ValueError: saying so; of masks of 0 and 255 also what to do.
    """
    labelled: set[int] = set()
    for mask in samples.masks:
        with suppress(*UNREADABLE):  # training says what is wrong with it
            labels = read_mask(mask, samples.table, samples.palette)
            labelled |= set(np.unique(labels).tolist()) - {IGNORED}
        if len(labelled) > 1:
            return
    if not labelled:
        return  # each is named when it is read, or a batch says that it has no labels
    name = samples.classes[labelled.pop()]
    hint = ""
    if samples.palette is None:
        values: set[int] = set()
        for mask in samples.masks:
            with suppress(*UNREADABLE):
                values |= set(np.unique(read_mask(mask, np.arange(256))).tolist())
        if values == {0, 255}:
            hint = (
                ". They hold only the values 0 and 255, and 255 means ignored: write the other "
                "class as 1, or colours into classes.txt (background 0 0 0, thing 255 255 255)"
            )
    raise ValueError(
        f"the masks in {samples.masks[0].parent} label one class only ({name!r}){hint}"
    )
