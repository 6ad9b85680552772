"""Batches of images with labels: transforms and loaders."""

from __future__ import annotations

import logging
from functools import partial

import torch
from torch import Tensor

from rmt.data.bad_samples import TestReader, TrainReader, readable
from rmt.data.loaders import ResumableLoader, SeededSamples, TaskData, make_loader
from rmt.data.samplers import TestBatches, TrainBatches
from rmt.segmentation.recipe import SegmentationRecipe
from rmt.segmentation.segmenter import IGNORED
from rmt.segmentation.sources import Samples, Splits, open_splits, refuse_binary
from rmt.segmentation.transforms import TrainTransform

log = logging.getLogger(__name__)

Example = tuple[Tensor, Tensor]


class SegmentationData(TaskData):
    """The loaders of a recipe.

    Training batches are images (B, 3, S, S) and labels (B, S, S); test batches are lists of whole
    images, (3, H, W) uint8 with labels (H, W).
    """

    recipe: SegmentationRecipe
    splits: Splits

    def __init__(self, recipe: SegmentationRecipe) -> None:
        super().__init__(recipe, open_splits(recipe.data))

    def train_dataloader(self) -> ResumableLoader:
        """Return the training loader, at the position where an interrupted run stopped."""
        data, samples, seed = self.recipe.data, self.splits.train, self.recipe.seed
        if samples is None:
            raise ValueError(f"data.root {data.root!r} has no part to train on")
        refuse_binary(samples)
        batches = TrainBatches(
            len(samples) * data.repeats, data.batch_size, seed=seed, **self.place()
        )
        vary = TrainTransform(data, self.recipe.augment, self.recipe.inference)
        read = TrainReader(
            partial(tensors, samples),
            vary,
            count=len(samples),
            max_bad_samples=data.max_bad_samples,
        )
        dataset = SeededSamples(samples, read, seed=seed)
        return make_loader(
            dataset, self.continued(batches), workers=data.num_workers, collate=stack
        )

    def exact(self, samples: Samples) -> ResumableLoader:
        """Return the loader of whole images of any size, one by one: they are segmented so."""
        batches = TestBatches(len(samples), 1, **self.place())
        data = self.recipe.data
        read = TestReader(
            partial(tensors, samples), count=len(samples), max_bad_samples=data.max_bad_samples
        )
        dataset = SeededSamples(samples, read, seed=0)
        return make_loader(dataset, batches, workers=data.num_workers, collate=readable)


DATA = SegmentationData


def tensors(samples: Samples, index: int) -> Example:
    """Return an image as (3, H, W) and its labels as (H, W), both uint8."""
    image, labels = samples.read(index)
    return torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(labels)


def stack(examples: list[Example]) -> Example:
    """Join training examples; says so if none of their pixels has a label."""
    images, labels = map(torch.stack, zip(*examples, strict=True))
    if (labels == IGNORED).all():
        log.warning(
            "no pixel of a training batch is labelled: it has loss 0 and teaches nothing "
            "(is data.crop too small, or are the masks empty?)"
        )
    return images, labels
