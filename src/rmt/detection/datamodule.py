"""Batches of images with boxes: reading, grouping, loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rmt.data.bad_samples import TestReader, TrainReader, readable
from rmt.data.loaders import ResumableLoader, SeededSamples, TaskData, make_loader
from rmt.data.samplers import SampleKey, TestBatches, TrainBatches
from rmt.detection import HEADS
from rmt.detection.augment import Example, TrainTransform
from rmt.detection.recipe import DetectionRecipe
from rmt.detection.sources import Samples, Splits, open_splits


class DetectionData(TaskData):
    """The loaders of a recipe.

    Training batches are lists of images (3, h, w), floats in 0..1, and of targets; test batches
    are lists of whole images with their ids.
    """

    recipe: DetectionRecipe
    splits: Splits

    def __init__(self, recipe: DetectionRecipe) -> None:
        super().__init__(recipe, open_splits(recipe.data))

    def train_dataloader(self) -> ResumableLoader:
        """Return the training loader, at the position where an interrupted run stopped."""
        data, train, seed = self.recipe.data, self.splits.train, self.recipe.seed
        if train is None:
            raise ValueError(f"data.root {data.root!r} has no part to train on")
        if data.aspect_ratio_grouping:
            shapes = upright(train) * data.repeats
            batches = ShapedBatches(shapes, data.batch_size, seed=seed, **self.place())
        else:
            size = len(train) * data.repeats
            batches = TrainBatches(size, data.batch_size, seed=seed, **self.place())
        masks = HEADS[self.recipe.model.head].has_masks
        transform = TrainTransform(self.recipe.model, self.recipe.augment)
        read = TrainReader(
            partial(numbered, train),
            partial(varied, samples=train, transform=transform, masks=masks),
            count=len(train),
            max_bad_samples=data.max_bad_samples,
        )
        dataset = SeededSamples(train, read, seed=seed)
        return make_loader(
            dataset, self.continued(batches), workers=data.num_workers, collate=side_by_side
        )

    def exact(self, samples: Samples) -> ResumableLoader:
        """Return the loader of whole images of any size, one by one, as the release tests them."""
        batches = TestBatches(len(samples), 1, **self.place())
        data = self.recipe.data
        read = TestReader(
            partial(with_id, samples), count=len(samples), max_bad_samples=data.max_bad_samples
        )
        dataset = SeededSamples(samples, read, seed=0)
        return make_loader(dataset, batches, workers=data.num_workers, collate=readable)


DATA = DetectionData


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

    def __iter__(self) -> Iterator[list[SampleKey]]:
        start, self.start = self.start, 0
        mine = [ticket for batch in super().__iter__() for ticket in batch]
        self.start = start
        waiting: dict[bool, list[SampleKey]] = {False: [], True: []}
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


def numbered(samples: Samples, index: int) -> tuple[Tensor, int]:
    """Return an image as (3, H, W), uint8, and its index."""
    return torch.from_numpy(np.array(samples.image(index))).permute(2, 0, 1), index


def varied(
    image: Tensor, index: int, *, samples: Samples, transform: Callable, masks: bool
) -> Example:
    """Return an image, floats in 0..1, and its target, varied together."""
    target = samples.target(index, masks=masks)
    image, target = transform(image, {key: torch.from_numpy(v) for key, v in target.items()})
    return image.float() / 255, target


def with_id(samples: Samples, index: int) -> tuple[Tensor, int]:
    """Return an image (3, H, W), floats in 0..1, and its id."""
    image, _ = numbered(samples, index)
    return image.float() / 255, samples.ids[index]


def upright(samples: Samples) -> list[bool]:
    """Return whether each image is higher than wide."""
    entries = (samples.images[i] for i in samples.ids)
    return [entry["height"] > entry["width"] for entry in entries]


def side_by_side(examples: list[Example]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Return images and targets as two lists; the model puts them on one canvas."""
    images, targets = zip(*examples, strict=True)
    return list(images), list(targets)
