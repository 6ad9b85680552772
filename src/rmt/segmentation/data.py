"""Batches of images with labels: transforms and loaders."""

from __future__ import annotations

import logging
from functools import partial

import lightning as L
import torch
from torch import Tensor

from rmt.loading import ResumableLoader, SeededSamples, TestBatches, TrainBatches, make_loader
from rmt.reading import TestReader, TrainReader, readable
from rmt.segmentation.recipe import SegmentationRecipe
from rmt.segmentation.segmenter import IGNORED
from rmt.segmentation.sources import Samples, Splits, open_splits
from rmt.segmentation.transforms import TrainTransform

log = logging.getLogger(__name__)

Example = tuple[Tensor, Tensor]


class SegmentationData(L.LightningDataModule):
    """The loaders of a recipe.

    Training batches are images (B, 3, S, S) and labels (B, S, S); test batches are lists of whole
    images, (3, H, W) uint8 with labels (H, W).
    """

    def __init__(self, recipe: SegmentationRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.splits: Splits = open_splits(recipe.data)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names."""
        return self.splits.train.classes

    def judged(self) -> Samples:
        """Return the test part, or the validation part if that is the test."""
        return self.splits.test or self.splits.val

    def train_dataloader(self) -> ResumableLoader:
        """Return the training loader, at the position where an interrupted run stopped."""
        data, samples, trainer = self.recipe.data, self.splits.train, self.trainer
        assert trainer is not None, "the loop attaches itself before it asks for loaders"
        batches = TrainBatches(
            len(samples) * data.repeats,
            data.batch,
            seed=self.recipe.seed,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        batches.resume(trainer.current_epoch, progress.ready)
        vary = TrainTransform(data, self.recipe.augment, self.recipe.test)
        read = TrainReader(
            partial(tensors, samples), vary, count=len(samples), max_errors=data.max_errors
        )
        dataset = SeededSamples(samples, read, seed=self.recipe.seed)
        return make_loader(dataset, batches, workers=data.workers, collate=stack)

    def val_dataloader(self) -> ResumableLoader:
        """Return the loader that chooses the best weights."""
        return self._exact(self.splits.val)

    def test_dataloader(self) -> ResumableLoader:
        """Return the loader of what is judged at the end."""
        return self._exact(self.judged())

    def _exact(self, samples: Samples) -> ResumableLoader:
        trainer, workers = self.trainer, self.recipe.data.workers
        assert trainer is not None
        # Whole images of any size, segmented one by one: the batch decides nothing here.
        batches = TestBatches(len(samples), 1, rank=trainer.global_rank, world=trainer.world_size)
        dataset = SeededSamples(samples, TestReader(partial(tensors, samples)), seed=0)
        return make_loader(dataset, batches, workers=workers, collate=readable)


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
