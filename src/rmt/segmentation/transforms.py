"""Augmentation of a training image with its labels, as in mmseg 0.13.

Images are (3, H, W) and labels (H, W), both uint8. Randomness comes from Python's global
generator, which the loader seeds for each sample.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from rmt.data.resize import keep_ratio, resize_bytes
from rmt.segmentation.inference import normalise
from rmt.segmentation.recipe import Augment, Data, Inference
from rmt.segmentation.segmenter import IGNORED

_CROP_TRIES = 10


class TrainTransform:
    """Resize by a random factor, crop a square, flip, change colours, normalise, pad.

    Args:
        data: side of the square, mean and standard deviation.
        augment: strength of each operation.
        inference: the size of evaluation, which is multiplied by the random factor.
    """

    def __init__(self, data: Data, augment: Augment, inference: Inference) -> None:
        self.data, self.augment, self.inference = data, augment, inference

    def __call__(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (3, S, S) float32 and (S, S) uint8; padding is the mean colour, and ignored."""
        image, labels = self._resize(image, labels)
        image, labels = self._crop(image, labels)
        for probability, axis in ((self.augment.flip, -1), (self.augment.flip_vertical, -2)):
            if random.random() < probability:
                image, labels = image.flip(axis), labels.flip(axis)
        if self.augment.photometric:
            image = distort(image)
        pixels = normalise(image, self.data.mean, self.data.std)
        below = (0, self.data.crop - labels.shape[1], 0, self.data.crop - labels.shape[0])
        return F.pad(pixels, below), F.pad(labels, below, value=IGNORED)

    def _resize(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        factor = random.uniform(*self.augment.scale)
        height, width = labels.shape
        if self.inference.min_size:
            short, long = (
                int(self.inference.min_size * factor),
                int(self.inference.max_size * factor),
            )
            size = keep_ratio(height, width, min_size=short, max_size=long)
        else:
            size = max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
        return resize_bytes(image, *size), resize_labels(labels, size)

    def _crop(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Crop a square with no class above ``cat_max_ratio``, if one is found in ten tries."""
        at = self._square(labels)
        tries = _CROP_TRIES if self.augment.cat_max_ratio < 1 else 0
        while tries and not self._is_mixed(labels[at]):
            at, tries = self._square(labels), tries - 1
        return image[:, *at], labels[at]

    def _square(self, labels: Tensor) -> tuple[slice, slice]:
        side = self.data.crop
        top = random.randint(0, max(labels.shape[0] - side, 0))
        left = random.randint(0, max(labels.shape[1] - side, 0))
        return slice(top, top + side), slice(left, left + side)

    def _is_mixed(self, labels: Tensor) -> bool:
        counts = torch.bincount(labels.flatten().int(), minlength=256)[:IGNORED]
        ratio = counts.max() / counts.sum().clamp_min(1)
        return int((counts > 0).sum()) > 1 and ratio.item() < self.augment.cat_max_ratio


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize labels (H, W) by nearest neighbour, rounded down, as OpenCV does."""
    return F.interpolate(labels[None, None], size=size, mode="nearest")[0, 0]


def distort(image: Tensor) -> Tensor:
    """Change brightness (±32), contrast, saturation (½ to 1½), hue (±36°), each with probability ½.

    Contrast is changed before or after saturation and hue. Values are rounded to 8 bits after each
    step, as in the release's pipeline (torchvision's ``RandomPhotometricDistort`` differs).

    Args:
        image: (3, H, W), uint8 RGB.
    """
    if _coin():
        image = _byte(image.float() + random.uniform(-32, 32))
    contrast_first = _coin()
    if contrast_first and _coin():
        image = _byte(image.float() * random.uniform(0.5, 1.5))
    saturation = random.uniform(0.5, 1.5) if _coin() else 1.0
    turn = 2.0 * random.randint(-18, 17) if _coin() else 0.0  # OpenCV has hue in units of 2 degrees
    if saturation != 1.0 or turn:
        image = turn_hue(image, turn, saturation=saturation)
    if not contrast_first and _coin():
        image = _byte(image.float() * random.uniform(0.5, 1.5))
    return image


def turn_hue(image: Tensor, degrees: float, *, saturation: float) -> Tensor:
    """Turn the hue and multiply the saturation of HSV; (3, H, W) uint8 to the same."""
    rgb = image.float()
    value, brightest = rgb.max(dim=0)
    chroma = value - rgb.amin(dim=0)
    red, green, blue = rgb
    sector = torch.stack([green - blue, blue - red, red - green]) / chroma.clamp_min(1)
    hue = 60 * (sector.gather(0, brightest[None])[0] + 2 * brightest) + degrees
    depth = (chroma * saturation).minimum(value)  # saturation is at most 1
    parts = []
    for start in (5, 3, 1):  # red, green, blue
        at = (start + hue / 60) % 6
        parts.append(value - depth * at.minimum(4 - at).clamp(0, 1))
    return _byte(torch.stack(parts).round())


def _byte(pixels: Tensor) -> Tensor:
    return pixels.clamp(0, 255).to(torch.uint8)


def _coin() -> bool:
    return random.random() < 0.5
