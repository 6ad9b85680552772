"""Batches of classification images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate

from rmt.classification.datasets import open_splits
from rmt.classification.recipe import ClassificationRecipe
from rmt.classification.samples import Samples, balanced
from rmt.classification.token_labels import CutTransform, LabelMaps
from rmt.classification.transforms import eval_transform, train_transform
from rmt.data.bad_samples import EvalReader, TrainReader, readable
from rmt.data.loaders import DataModule
from rmt.data.samplers import TrainBatches


class ClassificationData(DataModule[ClassificationRecipe, Samples]):
    """The loaders of a recipe: batches of images (B, 3, S, S) and labels (B,).

    Images with several labels come with targets (B, K) of 0 and 1 in place of labels.

    Evaluation batches have a third entry, the indices of the images, (B,).
    """

    def __init__(
        self, recipe: ClassificationRecipe, *, classes: Sequence[str] | None = None
    ) -> None:
        splits = open_splits(recipe.data, classes)
        # Only the data can tell.
        data = replace(recipe.data, multi_label=splits.val.multi_label)
        super().__init__(replace(recipe, data=data), splits)

    def train_batches(self, samples: Samples, *, rank: int, world: int) -> TrainBatches:
        """Return the order of the training images, with repeated augmentation."""
        data = self.recipe.data
        return TrainBatches(
            len(samples),
            data.images_per_batch,
            seed=self.recipe.seed,
            rank=rank,
            world=world,
            repeats=data.repeats,
            weights=balanced(samples) if data.balance == "sampling" else None,
        )

    def train_reader(self, samples: Samples) -> TrainReader:
        """Return the reader of augmented images, with their label maps if there are any."""
        data, augment, maps = self.recipe.data, self.recipe.augment, self.recipe.token_labels.root
        if maps:
            read = LabelMaps(maps, samples).read
            augmented = partial(with_map, transform=CutTransform(data, augment))
        else:
            read = samples.read
            augmented = partial(with_label, transform=train_transform(data, augment))
        return TrainReader(
            read, augmented, count=len(samples), max_bad_samples=data.max_bad_samples
        )

    def eval_reader(self, samples: Samples) -> EvalReader:
        """Return the reader of images with their labels and indices."""
        data = self.recipe.data
        read = partial(with_index, samples=samples, transform=eval_transform(data))
        return EvalReader(read, count=len(samples), max_bad_samples=data.max_bad_samples)

    def eval_collate(self, examples: list) -> tuple[Tensor, Tensor, Tensor]:
        """Return the readable examples as one batch, which may be empty."""
        good = readable(examples)
        if not good:
            none = torch.empty(0, dtype=torch.long)
            return torch.empty(0), none, none
        images, labels, indices = zip(*good, strict=True)
        return torch.stack(images), default_collate(list(labels)), torch.tensor(indices)


def with_label(
    image: Image.Image, label: int | Tensor, *, transform: Callable[[Image.Image], Tensor]
) -> tuple[Tensor, int | Tensor]:
    """Return an augmented training image and its label, or its targets."""
    return transform(image), label


def with_map(
    image: Image.Image, label: int, label_map: Tensor, *, transform: CutTransform
) -> tuple[Tensor, int, Tensor, Tensor, Tensor]:
    """Return an augmented training image, its label, its label map, and its crop and flip."""
    pixels, cut = transform(image)
    return pixels, label, label_map, cut.box, cut.mirrored


def with_index(
    index: int, *, samples: Samples, transform: Callable[[Image.Image], Tensor]
) -> tuple[Tensor, int | Tensor, int]:
    """Return a test image, its label or targets, and its index."""
    image, label = samples.read(index)
    return transform(image), label, index
