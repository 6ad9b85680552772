"""Batches of classification images: transforms and loaders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision import transforms as T

from rmt.classification.posterize import mended
from rmt.classification.recipe import Augment, ClassificationRecipe, Data
from rmt.classification.samples import Samples, Splits
from rmt.classification.sources import open_splits
from rmt.classification.token_labels import CutTransform, LabelMaps
from rmt.data.bad_samples import TestReader, TrainReader, readable
from rmt.data.loaders import ResumableLoader, SeededSamples, TaskData, make_loader
from rmt.data.samplers import TestBatches, TrainBatches


class ClassificationData(TaskData):
    """The loaders of a recipe; images come as (B, 3, S, S), labels as (B,)."""

    recipe: ClassificationRecipe
    splits: Splits

    def __init__(self, recipe: ClassificationRecipe) -> None:
        super().__init__(recipe, open_splits(recipe.data))

    def train_dataloader(self) -> ResumableLoader:
        """Return the training loader, at the position where an interrupted run stopped."""
        data, samples, seed = self.recipe.data, self.splits.train, self.recipe.seed
        batches = TrainBatches(
            len(samples), data.batch_size, seed=seed, repeats=data.repeats, **self.place()
        )
        token_labels, augment = self.recipe.token_labels, self.recipe.augment
        if token_labels.root:
            read: Any = LabelMaps(token_labels.root, samples).read
            vary: Any = partial(with_map, transform=CutTransform(data, augment))
        else:
            read = samples.read
            vary = partial(with_label, transform=train_transform(data, augment))
        read = TrainReader(read, vary, count=len(samples), max_bad_samples=data.max_bad_samples)
        dataset = SeededSamples(samples, read, seed=seed)
        return make_loader(dataset, self.continued(batches), workers=data.num_workers)

    def exact(self, samples: Samples) -> ResumableLoader:
        """Return the loader of test images: see :func:`exact_loader`."""
        return exact_loader(samples, self.recipe.data, **self.place())


DATA = ClassificationData


def with_label(
    picture: Image.Image, label: int, *, transform: Callable[[Image.Image], Tensor]
) -> tuple[Tensor, int]:
    """Return a varied training image and its label."""
    return transform(picture), label


def with_map(
    picture: Image.Image, label: int, label_map: Tensor, *, transform: CutTransform
) -> tuple[Tensor, int, Tensor, Tensor, Tensor]:
    """Return a varied training image, its label, its label map, and where it was cut."""
    image, cut = transform(picture)
    return image, label, label_map, cut.box, cut.mirrored


def exact_loader(samples: Samples, data: Data, *, rank: int = 0, world: int = 1) -> ResumableLoader:
    """Return batches of test images, labels and indices: each readable image once, in order."""
    batches = TestBatches(len(samples), data.batch_size, rank=rank, world=world)
    read = TestReader(
        partial(numbered, samples=samples, transform=eval_transform_of(data)),
        count=len(samples),
        max_bad_samples=data.max_bad_samples,
    )
    dataset = SeededSamples(samples, read, seed=0)
    return make_loader(dataset, batches, workers=data.num_workers, collate=drop_unreadable)


def numbered(
    index: int, *, samples: Samples, transform: Callable[[Image.Image], Tensor]
) -> tuple[Tensor, int, int]:
    """Return a test image, its label and its index."""
    picture, label = samples.read(index)
    return transform(picture), label, index


def drop_unreadable(examples: list) -> tuple[Tensor, Tensor, Tensor]:
    """Join the readable examples of a batch; it may be empty."""
    good = readable(examples)
    if not good:
        return torch.empty(0), torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)
    images, labels, indices = zip(*good, strict=True)
    return torch.stack(images), torch.tensor(labels), torch.tensor(indices)


def train_transform(data: Data, augment: Augment) -> Callable[[Image.Image], Tensor]:
    """Return the training transform: picture to (3, S, S), normalised."""
    if augment.crop == "random":
        transform: Any = create_transform(
            data.input_size,
            is_training=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.flip,
            color_jitter=0.0 if augment.rand_augment else augment.color_jitter,
            auto_augment=augment.rand_augment or None,
            interpolation=data.interpolation,
            mean=data.mean,
            std=data.std,
            re_prob=augment.erasing,
            re_mode="pixel",
        )
        return mended(transform)
    size = data.input_size
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
    return mended(T.Compose(steps))


def eval_transform_of(data: Data) -> Callable[[Image.Image], Tensor]:
    """Return the transform of evaluation and prediction: resize, centre crop, normalise."""
    transform: Any = create_transform(
        data.input_size,
        is_training=False,
        crop_pct=data.crop_pct,
        interpolation="bicubic" if data.interpolation == "random" else data.interpolation,
        mean=data.mean,
        std=data.std,
    )
    return transform


def _mode(name: str) -> T.InterpolationMode:
    return T.InterpolationMode.BILINEAR if name == "bilinear" else T.InterpolationMode.BICUBIC
