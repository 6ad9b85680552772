"""Token labelling: label maps cut with their image, MixToken, and the loss of both heads.

"All Tokens Matter: Token Labeling for Training Better Vision Transformers", arXiv 2104.10858.
"""

from __future__ import annotations

import math
import os
import random
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.ops import roi_align
from torchvision.transforms import functional as TF

from rmt.classification.recipe import Augment, Data
from rmt.classification.samples import Samples
from rmt.classification.transforms import random_crop_transform, with_posterize
from rmt.untrusted import read_pickle


class Cut(NamedTuple):
    """How an image was cropped and flipped; its label map is treated alike.

    Attributes:
        box: (4,) x0, y0, x1, y1 of the crop as fractions of the image's width and height.
        mirrored: (), True if the crop was flipped.
    """

    box: Tensor
    mirrored: Tensor


class CutTransform:
    """The training transform of the ImageNet recipe, which also returns its crop and flip.

    RandAugment's own shifts and rotations are small and are not applied to label maps, as in the
    paper.

    Raises:
        ValueError: if ``augment.crop`` is not ``random``.
    """

    def __init__(self, data: Data, augment: Augment) -> None:
        if augment.crop != "random":
            raise ValueError(f"augment.crop is {augment.crop!r}; label maps need 'random'")
        parts = random_crop_transform(data, augment, hflip=0.0, separate=True)
        first, *self.rest = map(with_posterize, parts)
        (self.crop,) = first.transforms
        self.flip = augment.flip

    def __call__(self, original: Image.Image) -> tuple[Tensor, Cut]:
        """Return the augmented image (3, S, S), normalised, and its crop and flip."""
        top, left, height, width = self.crop.get_params(original, self.crop.scale, self.crop.ratio)
        modes = self.crop.interpolation
        mode = random.choice(modes) if isinstance(modes, list | tuple) else modes
        image: Any = original  # torchvision annotates its functions for tensors only
        image = TF.resized_crop(image, top, left, height, width, self.crop.size, mode)
        mirrored = random.random() < self.flip
        if mirrored:
            image = TF.hflip(image)
        for transform in self.rest:
            image = transform(image)
        w, h = original.size
        box = torch.tensor([left / w, top / h, (left + width) / w, (top + height) / h])
        return image, Cut(box, torch.tensor(mirrored))


class LabelMaps:
    """Label maps on disk, found by the names of the images' class folder and file.

    A map is a tensor file: (2, k, h, w), float16 or float32, the teacher's k best logits and their
    classes over the whole image (float16 holds integers exactly up to 2048). This is the layout of
    the TokenLabeling project, whose maps have k = 5 and h = w = 18.

    Raises:
        ValueError: if ``root`` is not a folder.
    """

    def __init__(self, root: str | Path, samples: Samples) -> None:
        self.root, self.samples = Path(root), samples
        if not self.root.is_dir():
            raise ValueError(f"token_labels.root {str(root)!r} is not a folder")
        refuse_shared_maps(samples)

    def read(self, index: int) -> tuple[Image.Image, int, Tensor]:
        """Return an image, its label and its map."""
        return *self.samples.read(index), self[index]

    def __getitem__(self, index: int) -> Tensor:
        """Return the map of an image, (2, k, h, w) float32; ``ValueError`` if it is damaged."""
        path = self.root / map_name(self.samples.place(index))
        found = read_pickle(path, what="a label map")
        if not isinstance(found, Tensor) or found.ndim != 4 or len(found) != 2:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{path} contains {shape}; a label map is a tensor (2, k, h, w)")
        return found.float()


def map_name(image: str | PurePath) -> Path:
    """Return the path of an image's map in the folder of maps: ``CLASS/NAME.pt``."""
    image = PurePath(os.path.normpath(image))
    folder = image.parent.name
    return Path("" if folder == ".." else folder) / f"{image.stem}.pt"  # never one level up


def refuse_shared_maps(samples: Samples) -> None:
    """Raise ``ValueError`` if two images have the same class and name, or images have no names."""
    owner: dict[Path, int] = {}
    for index, item in enumerate(samples.items):
        if isinstance(item, np.ndarray):  # numbered anew in each split
            raise ValueError(
                "label maps are found by the names of image files, and digits and fashion-mnist "
                "have none; use token_labels.teacher instead, or write the images to files"
            )
        name = map_name(samples.place(index))
        if (other := owner.setdefault(name, index)) != index:
            raise ValueError(
                f"{samples.name(other)} and {samples.name(index)} would share the label map "
                f"{name}; their names must differ within a class"
            )


def dense_labels(
    maps: Tensor, box: Tensor, mirrored: Tensor, *, classes: int, size: tuple[int, int]
) -> Tensor:
    """Crop label maps as their images were cropped, and return them as class probabilities.

    The logits of classes that are not stored are 0. The crop is averaged by RoIAlign before the
    softmax.

    Args:
        maps: (B, 2, k, h, w).
        box: (B, 4) crop as fractions of the image, x0, y0, x1, y1.
        mirrored: (B,) bool.
        classes: K.
        size: (h', w') of the result.

    Returns:
        (B, h', w', K), the probabilities of each token.

    Raises:
        ValueError: if a map names a class that does not exist.
    """
    logits, indices = maps[:, 0], maps[:, 1].long()
    if indices.max() >= classes or indices.min() < 0:
        raise ValueError(
            f"a label map names class {int(indices.max())}, but the data has {classes} classes: "
            "are these the maps of another data set?"
        )
    count, _, height, width = logits.shape
    spread = logits.new_zeros(count, classes, height, width).scatter_(1, indices, logits)
    scale = box.new_tensor([width, height, width, height])
    crops = roi_align(spread, list((box * scale)[:, None]), size, aligned=True)
    crops = torch.where(mirrored[:, None, None, None], crops.flip(3), crops)
    return crops.softmax(dim=1).permute(0, 2, 3, 1)


def mixed_box(size: tuple[int, int], alpha: float) -> Tensor:
    """Draw which tokens MixToken takes from the other image: (h, w) bool, a random rectangle.

    The rectangle covers a fraction 1 - λ of the area, with λ from Beta(α, α). Its centre is uniform
    over the map, and it is clipped to the map.
    """
    side = math.sqrt(1 - random.betavariate(alpha, alpha))
    mask = torch.zeros(size, dtype=torch.bool)
    spans = []
    for length in size:
        half = int(length * side) // 2
        centre = random.randrange(length)
        spans.append(slice(max(centre - half, 0), min(centre + half, length)))
    mask[tuple(spans)] = True
    return mask


def on_stem(mixed: Tensor, times: int, size: tuple[int, int]) -> Tensor:
    """Return the last map's mask enlarged ``times`` to the ``size`` of the stem's map."""
    grown = mixed.repeat_interleave(times, 0).repeat_interleave(times, 1)
    return grown[: size[0], : size[1]]


def token_losses(
    logits: Tensor,
    dense: Tensor,
    *,
    class_targets: Tensor,
    dense_targets: Tensor,
    weight: float,
    mixed: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the cross-entropy of the class, and ``weight`` times the mean one of the tokens.

    Args:
        logits: (B, K).
        dense: (B, h, w, K), the auxiliary head's.
        class_targets: (B, K), probabilities.
        dense_targets: (B, h, w, K), probabilities, of the images before they were mixed.
        weight: of the tokens.
        mixed: (h, w), True where tokens came from the image at the other end of the batch; the
            class target is mixed by the area.
    """
    if mixed is not None:
        fraction = mixed.float().mean()
        class_targets = torch.lerp(class_targets, class_targets.flip(0), fraction)
        dense_targets = torch.where(mixed[..., None], dense_targets.flip(0), dense_targets)
    classes = logits.shape[-1]
    return {
        "class": F.cross_entropy(logits.float(), class_targets),
        "tokens": weight
        * F.cross_entropy(dense.float().reshape(-1, classes), dense_targets.reshape(-1, classes)),
    }


def smoothed(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return labels (B,) as probabilities (B, K), of which ``smoothing`` is spread over all."""
    return F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes
