"""Batches of images with boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rmt.data.bad_samples import EvalReader, TrainReader
from rmt.data.loaders import DataModule
from rmt.data.samplers import GroupedBatches, TrainBatches
from rmt.detection import HEADS
from rmt.detection.augment import Example, TrainTransform
from rmt.detection.datasets import open_splits
from rmt.detection.recipe import DetectionRecipe
from rmt.detection.samples import Samples


class DetectionData(DataModule[DetectionRecipe, Samples]):
    """The loaders of a recipe.

    Training batches are lists of images (3, h, w), floats in 0..1, and of targets; evaluation
    batches are lists of images with their ids.
    """

    eval_batch_size = 1  # as in the release: the output depends on the padded size

    def __init__(self, recipe: DetectionRecipe, *, classes: Sequence[str] | None = None) -> None:
        super().__init__(recipe, open_splits(recipe.data, classes))

    def train_batches(self, samples: Samples, *, rank: int, world: int) -> TrainBatches:
        """Return the batches of training images, grouped by orientation if the recipe says so."""
        data = self.recipe.data
        if not data.aspect_ratio_grouping:
            return super().train_batches(samples, rank=rank, world=world)
        shapes = portrait(samples) * data.repeats
        return GroupedBatches(
            shapes, data.images_per_batch, seed=self.recipe.seed, rank=rank, world=world
        )

    def train_reader(self, samples: Samples) -> TrainReader:
        """Return the reader of augmented images with their boxes (and masks)."""
        transform = TrainTransform(self.recipe.model, self.recipe.augment)
        masks = HEADS[self.recipe.model.head].has_masks
        return TrainReader(
            partial(with_target, samples, masks=masks),
            partial(augmented, transform=transform),
            count=len(samples),
            max_bad_samples=self.recipe.data.max_bad_samples,
        )

    def train_collate(
        self, examples: list[Example]
    ) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """Return images and targets as two lists; the model pads them to one size."""
        images, targets = zip(*examples, strict=True)
        return list(images), list(targets)

    def eval_reader(self, samples: Samples) -> EvalReader:
        """Return the reader of images with their ids."""
        limit = self.recipe.data.max_bad_samples
        return EvalReader(partial(with_id, samples), count=len(samples), max_bad_samples=limit)


def pixels(samples: Samples, index: int) -> Tensor:
    """Return an image as (3, H, W), uint8."""
    return torch.from_numpy(np.array(samples.image(index))).permute(2, 0, 1)


def with_target(samples: Samples, index: int, *, masks: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Return an image as (3, H, W), uint8, and its objects."""
    image = pixels(samples, index)
    target = samples.target(index, masks=masks)
    return image, {key: torch.from_numpy(value) for key, value in target.items()}


def augmented(image: Tensor, target: dict[str, Tensor], *, transform: Callable) -> Example:
    """Return an image, floats in 0..1, and its target, augmented together."""
    image, target = transform(image, target)
    return image.float() / 255, target


def with_id(samples: Samples, index: int) -> tuple[Tensor, int]:
    """Return an image (3, H, W), floats in 0..1, and its id."""
    return pixels(samples, index).float() / 255, samples.ids[index]


def portrait(samples: Samples) -> list[bool]:
    """Return whether each image is taller than wide."""
    entries = (samples.images[i] for i in samples.ids)
    return [entry["height"] > entry["width"] for entry in entries]
