"""Batches of classification images: transforms, unreadable files, loaders."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision import transforms as T

from rmt.classification.recipe import Augment, ClassificationRecipe, Data
from rmt.classification.sources import Samples, Splits, open_splits
from rmt.classification.token_labels import CutTransform, LabelMaps
from rmt.loading import ResumableLoader, SeededSamples, TestBatches, TrainBatches, make_loader

log = logging.getLogger(__name__)


class ClassificationData(L.LightningDataModule):
    """The loaders of a recipe; images come as (B, 3, S, S), labels as (B,)."""

    def __init__(self, recipe: ClassificationRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.splits: Splits = open_splits(recipe.data)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names."""
        return self.splits.train.classes

    def train_dataloader(self) -> ResumableLoader:
        """Return the training loader, at the position where an interrupted run stopped."""
        data, samples, trainer = self.recipe.data, self.splits.train, self.trainer
        assert trainer is not None  # the loop attaches itself before it asks for loaders
        batches = TrainBatches(
            len(samples),
            data.batch,
            seed=self.recipe.seed,
            rank=trainer.global_rank,
            world=trainer.world_size,
            repeats=data.repeats,
        )
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        batches.resume(trainer.current_epoch, progress.ready)
        token_labels, augment = self.recipe.token_labels, self.recipe.augment
        maps = LabelMaps(token_labels.root, samples) if token_labels.root else None
        transform = CutTransform(data, augment) if maps else train_transform(data, augment)
        read = TrainReader(samples, transform, data.max_errors, maps=maps)
        dataset = SeededSamples(samples, read, seed=self.recipe.seed)
        return make_loader(dataset, batches, workers=data.workers)

    def val_dataloader(self) -> ResumableLoader:
        """Return the loader that chooses the best weights."""
        return self._exact(self.splits.val)

    def test_dataloader(self) -> ResumableLoader:
        """Return the loader of the test part, or of the validation part if that is the test."""
        return self._exact(self.splits.test or self.splits.val)

    def _exact(self, samples: Samples) -> ResumableLoader:
        data = self.recipe.data
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        batches = TestBatches(len(samples), data.batch, rank=rank, world=world)
        read = TestReader(samples, test_transform(data))
        dataset = SeededSamples(samples, read, seed=0)
        return make_loader(dataset, batches, workers=data.workers, collate=drop_unreadable)


class TrainReader:
    """Read and vary a training image; an unreadable one is named in the log once and replaced.

    With ``maps`` the transform also tells where it cut, and an image without its map is unreadable.
    """

    def __init__(
        self,
        samples: Samples,
        transform: Callable,
        max_errors: int,
        *,
        maps: LabelMaps | None = None,
    ) -> None:
        self.samples, self.transform, self.max_errors = samples, transform, max_errors
        self.maps = maps
        self.unreadable: set[int] = set()

    def __call__(self, index: int) -> tuple[Any, ...]:
        """Return image and label, then map, box and mirroring where there are maps.

        The next readable image stands in for a damaged one.
        """
        for step in range(len(self.samples)):
            at = (index + step) % len(self.samples)
            try:
                varied = self.transform(self.samples.image(at))
                label = self.samples.labels[at]
                if self.maps is None:
                    return varied, label
                image, cut = varied
                return image, label, self.maps[at], *cut
            except (ValueError, FileNotFoundError) as error:
                if at not in self.unreadable:
                    self.unreadable.add(at)
                    log.warning("skipped: %s", error)
                if len(self.unreadable) > self.max_errors:
                    raise ValueError(
                        f"more than data.max_errors={self.max_errors} training images are "
                        f"unreadable, the last one: {error}"
                    ) from error
        raise ValueError("no training image can be read")


class TestReader:
    """Read a test image; an unreadable one is named in the log and left out."""

    __test__ = False  # no pytest class

    def __init__(self, samples: Samples, transform: Callable) -> None:
        self.samples, self.transform = samples, transform

    def __call__(self, index: int) -> tuple[Tensor, int, int] | None:
        """Return image, label and index, or None."""
        try:
            return self.transform(self.samples.image(index)), self.samples.labels[index], index
        except (ValueError, FileNotFoundError) as error:
            log.warning("left out of the evaluation: %s", error)
            return None


def drop_unreadable(examples: list) -> tuple[Tensor, Tensor, Tensor]:
    """Join the readable examples of a batch; it may be empty."""
    good = [example for example in examples if example is not None]
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
        return transform
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
    return T.Compose(steps)


def test_transform(data: Data) -> Callable[[Image.Image], Tensor]:
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


test_transform.__test__ = False  # type: ignore[attr-defined]  # no pytest function


def _mode(name: str) -> T.InterpolationMode:
    return T.InterpolationMode.BILINEAR if name == "bilinear" else T.InterpolationMode.BICUBIC
