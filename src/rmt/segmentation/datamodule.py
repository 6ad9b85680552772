"""Batches of images with masks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from rmt.data.bad_samples import EvalReader, TrainReader
from rmt.data.loaders import DataModule
from rmt.segmentation.datasets import open_splits
from rmt.segmentation.recipe import SegmentationRecipe
from rmt.segmentation.samples import Samples, check_labels
from rmt.segmentation.segmenter import IGNORED
from rmt.segmentation.transforms import TrainTransform

log = logging.getLogger(__name__)

Example = tuple[Tensor, Tensor]


class SegmentationData(DataModule[SegmentationRecipe, Samples]):
    """The loaders of a recipe.

    Training batches are images (B, 3, S, S) and labels (B, S, S); evaluation batches are lists of
    images of any size, (3, H, W) uint8 with labels (H, W).
    """

    eval_batch_size = 1  # each image has its own size

    def __init__(self, recipe: SegmentationRecipe, *, classes: Sequence[str] | None = None) -> None:
        super().__init__(recipe, open_splits(recipe.data, classes))

    def train_reader(self, samples: Samples) -> TrainReader:
        """Return the reader of augmented images with their masks."""
        check_labels(samples)
        data = self.recipe.data
        return TrainReader(
            partial(tensors, samples),
            TrainTransform(data, self.recipe.augment, self.recipe.inference),
            count=len(samples),
            max_bad_samples=data.max_bad_samples,
        )

    def train_collate(self, examples: list[Example]) -> Example:
        """Stack training examples; warn if none of their pixels has a label."""
        images, labels = map(torch.stack, zip(*examples, strict=True))
        if (labels == IGNORED).all():
            log.warning(
                "a training batch has no labelled pixel, so its loss is 0 and nothing is learned "
                "from it (is data.crop too small, or are the masks empty?)"
            )
        return images, labels

    def eval_reader(self, samples: Samples) -> EvalReader:
        """Return the reader of images with their masks."""
        limit = self.recipe.data.max_bad_samples
        return EvalReader(partial(tensors, samples), count=len(samples), max_bad_samples=limit)


def tensors(samples: Samples, index: int) -> Example:
    """Return an image as (3, H, W) and its labels as (H, W), both uint8."""
    image, labels = samples.read(index)
    return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(labels)
