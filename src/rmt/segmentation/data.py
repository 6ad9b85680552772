"""Batches of images with labels: reading, unreadable files, loaders."""

from __future__ import annotations

import logging
from collections.abc import Callable

import lightning as L
import torch
from torch import Tensor

from rmt.loading import ResumableLoader, SeededSamples, TestBatches, TrainBatches, make_loader
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

    def train_dataloader(self) -> ResumableLoader:
        """Return the training loader, at the position where an interrupted run stopped."""
        data, trainer = self.recipe.data, self.trainer
        assert trainer is not None, "the loop attaches itself before it asks for loaders"
        samples = self.splits.train.take(list(range(len(self.splits.train))) * data.repeats)
        batches = TrainBatches(
            len(samples),
            data.batch,
            seed=self.recipe.seed,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        batches.resume(trainer.current_epoch, progress.ready)
        vary = TrainTransform(data, self.recipe.augment, self.recipe.test)
        dataset = SeededSamples(
            samples, TrainReader(samples, vary, data.max_errors), seed=self.recipe.seed
        )
        return make_loader(dataset, batches, workers=data.workers, collate=stack)

    def val_dataloader(self) -> ResumableLoader:
        """Return the loader that chooses the best weights."""
        return self._exact(self.splits.val)

    def test_dataloader(self) -> ResumableLoader:
        """Return the loader of the test part, or of the validation part if that is the test."""
        return self._exact(self.splits.test or self.splits.val)

    def _exact(self, samples: Samples) -> ResumableLoader:
        trainer, workers = self.trainer, self.recipe.data.workers
        assert trainer is not None
        # Whole images of any size, segmented one by one: the batch decides nothing here.
        batches = TestBatches(len(samples), 1, rank=trainer.global_rank, world=trainer.world_size)
        dataset = SeededSamples(samples, TestReader(samples), seed=0)
        return make_loader(dataset, batches, workers=workers, collate=drop_unreadable)


class TrainReader:
    """Read and vary a training example; an unreadable one is named in the log and replaced."""

    def __init__(self, samples: Samples, transform: Callable, max_errors: int) -> None:
        self.samples, self.transform, self.max_errors = samples, transform, max_errors
        self.errors = 0

    def __call__(self, index: int) -> Example:
        """Return an image and its labels; the next readable one stands in for a damaged one."""
        for step in range(len(self.samples)):
            try:
                image, labels = tensors(self.samples, (index + step) % len(self.samples))
            except (ValueError, FileNotFoundError) as error:
                self.errors += 1
                log.warning("skipped: %s", error)
                if self.errors > self.max_errors:
                    raise ValueError(
                        f"more than data.max_errors={self.max_errors} unreadable examples; "
                        f"the last: {error}"
                    ) from error
            else:
                return self.transform(image, labels)
        raise ValueError("no training example can be read; each is named above")


class TestReader:
    """Read a test example; an unreadable one is named in the log and left out."""

    __test__ = False  # no pytest class

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __call__(self, index: int) -> Example | None:
        """Return an image (3, H, W) and labels (H, W), both uint8, or None."""
        try:
            return tensors(self.samples, index)
        except (ValueError, FileNotFoundError) as error:
            log.warning("left out of the evaluation: %s", error)
            return None


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


def drop_unreadable(examples: list[Example | None]) -> list[Example]:
    """Return the readable examples of a batch; there may be none."""
    return [example for example in examples if example is not None]
