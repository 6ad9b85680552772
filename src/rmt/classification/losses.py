"""The losses of a classifier: cross-entropy, also of mixed images and of labelled tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import timm
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor

from rmt.classification.models import Classifier
from rmt.classification.recipe import ClassificationRecipe
from rmt.classification.samples import Samples, class_weights
from rmt.classification.teacher import Teacher
from rmt.classification.token_labels import (
    dense_labels,
    mixed_box,
    on_stem,
    smoothed,
    token_losses,
)
from rmt.classification.transforms import eval_transform, mixup_of, train_transform
from rmt.messages import did_you_mean
from rmt.modeling.necks import full_precision
from rmt.modeling.rmt import RMT

Named = dict[str, Tensor]


class ClassificationLoss:
    """The loss of a batch, with Mixup and CutMix or token labelling if the recipe asks for them.

    Args:
        recipe: of the run.
        model: the network to train.
        train: the training images, whose classes ``data.balance`` weighs.

    Raises:
        ValueError: if a model with token labels has neither label maps nor a teacher.
    """

    def __init__(
        self, recipe: ClassificationRecipe, model: Classifier, train: Samples | None = None
    ) -> None:
        self.recipe, self.model = recipe, model
        if isinstance(model, RMT) and model.aux_head is not None:
            model.set_token_label_training()
        self.weights: Tensor | None = None
        if recipe.data.balance == "loss" and train is not None:
            self.weights = class_weights(train).float()
        augment, classes = recipe.augment, model.num_classes
        smoothing = augment.label_smoothing
        self.mixup = mixup_of(augment, label_smoothing=smoothing, num_classes=classes)
        self.teacher = teacher_of(recipe, model)
        self._hard = LabelSmoothingCrossEntropy(augment.label_smoothing)
        self._soft = SoftTargetCrossEntropy()

    def __call__(
        self, network: Callable[..., Tensor], batch: Sequence[Tensor]
    ) -> tuple[Named, Named]:
        """Return the named losses of a batch, and other values to log.

        Args:
            network: the model to train, possibly compiled.
            batch: images (B, 3, S, S), labels (B,) and, with label maps, maps and crops.
        """
        if self.model.aux_head is not None:
            return self._token_losses(network, *batch), {}
        images, labels = batch
        if self.mixup is not None:
            images, targets = self.mixed(images, labels)
            logits = network(images)
            return {"class": self._weighted(logits, targets, self._soft)}, {}
        logits = network(images)
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        return {"class": self._weighted(logits, labels, self._hard)}, {"accuracy": accuracy}

    def _weighted(
        self, logits: Tensor, targets: Tensor, unweighted: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Return the mean cross-entropy, each image with the mean weight of its target's classes.

        Args:
            logits: (B, K).
            targets: (B,) labels, or (B, K) probabilities of mixed images.
            unweighted: the loss without weights.
        """
        if self.weights is None:
            return unweighted(logits, targets)
        if targets.ndim == 1:
            smoothing = self.recipe.augment.label_smoothing
            targets = smoothed(targets, len(self.weights), smoothing)
        logits = full_precision(logits)
        targets = targets.to(logits)
        each = targets @ self.weights.to(logits)
        return (each * F.cross_entropy(logits, targets, reduction="none")).mean()

    def mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return images mixed in pairs (in place) and their soft targets (B, K).

        timm mixes an even number; the last image of an odd batch stays as it is.
        """
        assert self.mixup is not None
        pairs = len(images) // 2 * 2
        _, targets = self.mixup(images[:pairs], labels[:pairs])
        if pairs < len(images):
            smoothing = self.recipe.augment.label_smoothing
            last = smoothed(labels[pairs:], self.model.num_classes, smoothing)
            targets = torch.cat([targets, last.to(targets)])
        return images, targets

    def _token_losses(
        self, network: Callable[..., Tensor], images: Tensor, labels: Tensor, *label_map: Tensor
    ) -> Named:
        recipe, classes = self.recipe.token_labels, self.model.num_classes
        assert isinstance(self.model, RMT)  # no other model has the auxiliary head
        strides = self.model.variant.reductions
        size = _grid(images, strides[-1])
        mixed = stem_mixed = None
        if recipe.mix:
            mixed = mixed_box(size, recipe.mix).to(images.device)
            stem_mixed = on_stem(mixed, strides[-1] // strides[0], _grid(images, strides[0]))

        def labels_on(grid: tuple[int, int]) -> Tensor:
            if self.teacher is not None:
                return self.teacher.labels(images, grid)
            maps, box, mirrored = label_map
            return dense_labels(maps, box, mirrored, classes=classes, size=grid)

        if recipe.class_target == "label":
            class_targets = smoothed(labels, classes, self.recipe.augment.label_smoothing)
        else:
            class_targets = labels_on((1, 1))[:, 0, 0]
        logits, dense = network(images, stem_mixed)
        return token_losses(
            logits,
            dense,
            class_targets=class_targets,
            dense_targets=labels_on(size),
            weight=recipe.weight,
            mixed=mixed,
        )


def teacher_of(recipe: ClassificationRecipe, model: Classifier) -> Teacher | None:
    """Return the teacher that labels batches; None with label maps or without token labelling.

    Raises:
        ValueError: if a model with token labels has neither maps nor a teacher, or a model without
            token labels has one of them.
    """
    wanted, data = recipe.token_labels, recipe.data
    named = wanted.root or wanted.teacher
    if model.aux_head is None and named:
        raise ValueError(f"token labels from {named!r} need a model with model.token_labels true")
    if model.aux_head is not None and not named:
        raise ValueError(
            "model.token_labels is true: name label maps in token_labels.root, or a timm model in "
            "token_labels.teacher"
        )
    if not wanted.teacher:
        return None
    return Teacher(
        wanted.teacher, model.num_classes, weights=wanted.weights, mean=data.mean, std=data.std
    )


def check_recipe(recipe: ClassificationRecipe) -> None:
    """Build the transforms and look up the teacher, to find the mistakes that a run would find.

    Raises:
        ValueError: for a RandAugment string or a teacher that timm does not know.
    """
    try:
        train_transform(recipe.data, recipe.augment)
    except (AssertionError, KeyError, IndexError, ValueError) as error:
        raise ValueError(
            f"augment.rand_augment is {recipe.augment.rand_augment!r}, which timm cannot read "
            f"({type(error).__name__}); write it such as rand-m9-mstd0.5-inc1"
        ) from error
    eval_transform(recipe.data)
    teacher = recipe.token_labels.teacher
    if teacher and not timm.is_model(teacher):
        raise ValueError(f"unknown teacher {teacher!r}{did_you_mean(teacher, timm.list_models())}")


def _grid(images: Tensor, stride: int) -> tuple[int, int]:
    """Return the size of the map of ``stride``, rounded up."""
    height, width = images.shape[2:]
    return -(-height // stride), -(-width // stride)
