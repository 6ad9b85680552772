"""Training and evaluation transforms of classification images, by timm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image
from timm.data import Mixup, auto_augment, create_transform
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision import transforms as T

from rmt.classification.recipe import Augment, Data


def train_transform(data: Data, augment: Augment) -> Callable[[Image.Image], Tensor]:
    """Return the training transform: image to (3, S, S), normalised."""
    if augment.crop == "random":
        return with_posterize(random_crop_transform(data, augment, hflip=augment.flip))
    size = data.side
    steps: list[Any] = [T.Resize((size, size), _mode(data.interpolation))]
    if augment.crop == "shift":
        steps.append(T.RandomCrop(size, padding=size // 8))
    if augment.flip:
        steps.append(T.RandomHorizontalFlip(augment.flip))
    if augment.rand_augment:
        grey = tuple(round(255 * m) for m in data.mean)
        steps.append(rand_augment_transform(augment.rand_augment, {"img_mean": grey}))
    elif augment.color_jitter:
        steps.append(T.ColorJitter(*[augment.color_jitter] * 3))
    steps += [T.ToTensor(), T.Normalize(data.mean, data.std)]
    if augment.erasing:
        steps.append(RandomErasing(augment.erasing, mode="pixel", device="cpu"))
    return with_posterize(T.Compose(steps))


def random_crop_transform(
    data: Data, augment: Augment, *, hflip: float, separate: bool = False
) -> Any:
    """Return timm's ImageNet transform: random crop, flip, colours, random erasing.

    Args:
        data: size, interpolation, mean and standard deviation.
        augment: strength of each operation.
        hflip: probability of a horizontal flip.
        separate: return its three parts (crop and flip, colours, tensors) as a tuple.
    """
    # None adds no operation, where 0 would add one that takes time and does nothing.
    color_jitter: Any = (0.0 if augment.rand_augment else augment.color_jitter) or None
    return create_transform(
        data.side,
        is_training=True,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=hflip,
        color_jitter=color_jitter,
        auto_augment=augment.rand_augment or None,
        interpolation=data.interpolation,
        mean=data.mean,
        std=data.std,
        re_prob=augment.erasing,
        re_mode="pixel",
        separate=separate,
    )


def mixup_of(augment: Augment, *, label_smoothing: float, num_classes: int = 0) -> Mixup | None:
    """Return timm's Mixup and CutMix of batches, None if the recipe has neither.

    Args:
        augment: of the recipe.
        label_smoothing: of the mixed targets.
        num_classes: of the targets; whoever calls it with others sets it before.
    """
    if not (augment.mixup or augment.cutmix):
        return None
    return Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        switch_prob=augment.mixup_switch_prob,
        label_smoothing=label_smoothing,
        num_classes=num_classes,
    )


def eval_transform(data: Data) -> Callable[[Image.Image], Tensor]:
    """Return the transform of evaluation and prediction: resize, centre crop, normalise."""
    transform: Any = create_transform(
        data.side,
        is_training=False,
        crop_pct=data.crop_pct,
        interpolation="bicubic" if data.interpolation == "random" else data.interpolation,
        mean=data.mean,
        std=data.std,
    )
    return transform


def _mode(name: str) -> T.InterpolationMode:
    return T.InterpolationMode.BILINEAR if name == "bilinear" else T.InterpolationMode.BICUBIC


def with_posterize(transform: Any) -> Any:
    """Return a composed transform of timm whose RandAugment may posterize to 0 bits.

    At its full strength timm's ``PosterizeIncreasing`` keeps no bits of a pixel, which
    ``rand-m9-mstd0.5-inc1`` sometimes asks for. Older versions of Pillow, such as those of the
    published runs, then return a black image; version 13 raises ``ValueError``.
    """
    for part in transform.transforms:
        for op in part.ops if isinstance(part, auto_augment.RandAugment) else ():
            if op.aug_fn is auto_augment.posterize:
                op.aug_fn = posterize
    return transform


def posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    """Return an image with ``bits`` bits per channel, 0 to 8; ``options`` are timm's, unused."""
    if bits == 0:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits, **options)
