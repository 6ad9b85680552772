"""Batches of images with boxes: reading, unreadable files, grouping, loaders."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import lightning as L
import numpy as np
import torch
from torch import Tensor

from rmt.detection import HEADS
from rmt.detection.augment import Example, TrainTransform
from rmt.detection.recipe import DetectionRecipe
from rmt.detection.sources import Samples, Splits, open_splits
from rmt.loading import (
    ResumableLoader,
    SeededSamples,
    TestBatches,
    Ticket,
    TrainBatches,
    make_loader,
)

log = logging.getLogger(__name__)


class DetectionData(L.LightningDataModule):
    """The loaders of a recipe.

    Training batches are lists of images (3, h, w), floats in 0..1, and of targets; test batches
    are lists of whole images with their ids.
    """

    def __init__(self, recipe: DetectionRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.splits: Splits = open_splits(recipe.data)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names."""
        return self.splits.classes

    def judged(self, *, test: bool) -> Samples:
        """Return the samples that an evaluation runs over."""
        return (self.splits.test if test else None) or self.splits.val

    def train_dataloader(self) -> ResumableLoader:
        """Return the training loader, at the position where an interrupted run stopped."""
        data, train = self.recipe.data, self.splits.train
        if train is None:
            raise ValueError(f"data.root {data.root!r} has no part to train on")
        samples = train.take(list(range(len(train))) * data.repeats)
        trainer = self.trainer
        assert trainer is not None
        rank, world = trainer.global_rank, trainer.world_size
        place = {"seed": self.recipe.seed, "rank": rank, "world": world}
        if data.group_by_shape:
            batches = ShapedBatches(upright(samples), data.batch, **place)
        else:
            batches = TrainBatches(len(samples), data.batch, **place)
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        batches.resume(trainer.current_epoch, progress.ready)
        masks = HEADS[self.recipe.model.head].has_masks
        vary = TrainTransform(self.recipe.model, self.recipe.augment)
        read = TrainReader(samples, vary, masks=masks, max_errors=data.max_errors)
        dataset = SeededSamples(samples, read, seed=self.recipe.seed)
        return make_loader(dataset, batches, workers=data.workers, collate=side_by_side)

    def val_dataloader(self) -> ResumableLoader:
        """Return the loader that chooses the best weights."""
        return self._exact(self.judged(test=False))

    def test_dataloader(self) -> ResumableLoader:
        """Return the loader of the test part, or of the validation part if that is the test."""
        return self._exact(self.judged(test=True))

    def _exact(self, samples: Samples) -> ResumableLoader:
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        # Whole images of any size, as the release tests them: one by one.
        batches = TestBatches(len(samples), 1, rank=rank, world=world)
        dataset = SeededSamples(samples, TestReader(samples), seed=0)
        return make_loader(
            dataset, batches, workers=self.recipe.data.workers, collate=drop_unreadable
        )


class ShapedBatches(TrainBatches):
    """Training batches of lying images only, or of upright ones only; the last may be mixed.

    Args:
        upright: whether each sample is higher than wide.
        batch: samples a batch and process.
        seed: of the order.
        rank: this process.
        world: number of processes.
    """

    def __init__(
        self, upright: list[bool], batch: int, *, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__(len(upright), batch, seed=seed, rank=rank, world=world)
        self.upright = upright

    def __iter__(self) -> Iterator[list[Ticket]]:
        start, self.start = self.start, 0
        mine = [ticket for batch in super().__iter__() for ticket in batch]
        self.start = start
        waiting: dict[bool, list[Ticket]] = {False: [], True: []}
        batches = []
        for ticket in mine:
            group = waiting[self.upright[ticket[1]]]
            group.append(ticket)
            if len(group) == self.batch:
                batches.append(list(group))
                group.clear()
        rest = waiting[False] + waiting[True]
        batches += [rest[i : i + self.batch] for i in range(0, len(rest), self.batch)]
        yield from batches[start:]


class TrainReader:
    """Read and vary a training example; an unreadable one is named in the log and replaced."""

    def __init__(
        self, samples: Samples, transform: Callable, *, masks: bool, max_errors: int
    ) -> None:
        self.samples, self.transform = samples, transform
        self.masks, self.max_errors = masks, max_errors
        self.errors = 0

    def __call__(self, index: int) -> Example:
        """Return an image and its target; the next readable one stands in for a damaged one."""
        for step in range(len(self.samples)):
            at = (index + step) % len(self.samples)
            try:
                image = to_tensor(self.samples, at)
            except ValueError as error:
                self.errors += 1
                log.warning("skipped: %s", error)
                if self.errors > self.max_errors:
                    raise ValueError(
                        f"more than data.max_errors={self.max_errors} unreadable images; "
                        f"the last: {error}"
                    ) from error
                continue
            target = self.samples.target(at, masks=self.masks)
            image, varied = self.transform(
                image, {key: torch.from_numpy(value) for key, value in target.items()}
            )
            return image.float() / 255, varied
        raise ValueError("no training image can be read; each is named above")


class TestReader:
    """Read a test image; an unreadable one is named in the log and left out."""

    __test__ = False  # no pytest class

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __call__(self, index: int) -> tuple[Tensor, int] | None:
        """Return an image (3, H, W), floats in 0..1, and its id, or None."""
        try:
            return to_tensor(self.samples, index).float() / 255, self.samples.ids[index]
        except ValueError as error:
            log.warning("left out of the evaluation: %s", error)
            return None


def to_tensor(samples: Samples, index: int) -> Tensor:
    """Return an image as (3, H, W), uint8."""
    return torch.from_numpy(np.array(samples.image(index))).permute(2, 0, 1)


def upright(samples: Samples) -> list[bool]:
    """Return whether each image is higher than wide."""
    entries = (samples.images[i] for i in samples.ids)
    return [entry["height"] > entry["width"] for entry in entries]


def side_by_side(examples: list[Example]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return images and targets as two lists; the model puts them on one canvas."""
    images, targets = zip(*examples, strict=True)
    return list(images), list(targets)


def drop_unreadable(examples: list) -> list[tuple[Tensor, int]]:
    """Return the readable examples of a batch; there may be none."""
    return [example for example in examples if example is not None]
