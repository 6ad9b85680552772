"""Training and judging a classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from rmt.classification.imagenet_sets import mean_corruption_error, same_imagenet
from rmt.classification.recipe import ClassificationRecipe
from rmt.classification.samples import Samples
from rmt.classification.teacher import Teacher
from rmt.classification.token_labels import (
    dense_labels,
    mixed_box,
    on_stem,
    smoothed,
    token_losses,
)
from rmt.modeling.registry import create_model
from rmt.modeling.rmt import RMT
from rmt.training.module import Engine
from rmt.training.optim import freeze, is_within


class ClassificationTask(Engine):
    """A classifier with its loss (soft cross-entropy of mixed images) and top-1 / top-5.

    Args:
        recipe: of the run.
        classes: class names of the data.
        model: to judge; None makes a fresh one to train.
        judged: the images that :meth:`score` sees; they may restrict or widen what is right.

    Raises:
        ValueError: if the model has other classes than the data.
    """

    key = "top1"
    model: RMT
    recipe: ClassificationRecipe

    def __init__(
        self,
        recipe: ClassificationRecipe,
        classes: tuple[str, ...],
        *,
        model: RMT | None = None,
        judged: Samples | None = None,
    ) -> None:
        super().__init__(model or new_model(recipe, classes), recipe)
        if self.model.num_classes != len(classes):
            raise ValueError(
                f"the model has {self.model.num_classes} classes and the data {len(classes)}"
            )
        names = tuple(self.model.info.get("label_names", classes))
        differing = [pair for pair in zip(names, classes, strict=True) if pair[0] != pair[1]]
        if differing and not same_imagenet(names, classes):
            raise ValueError(
                f"the model was made for other classes than the data has: {differing[0][0]!r} "
                f"there and {differing[0][1]!r} here, {len(differing)} differ"
            )
        augment = recipe.augment
        self.mixup = None
        if augment.mixup or augment.cutmix:
            self.mixup = Mixup(
                mixup_alpha=augment.mixup,
                cutmix_alpha=augment.cutmix,
                switch_prob=augment.mixup_switch_prob,
                label_smoothing=augment.label_smoothing,
                num_classes=len(classes),
            )
        count, top = len(classes), min(5, len(classes))
        self.judges = nn.ModuleDict(
            {
                weights: MetricCollection(
                    {
                        "top1": MulticlassAccuracy(count, average="micro"),
                        "top5": MulticlassAccuracy(count, average="micro", top_k=top),
                        "confusion": MulticlassConfusionMatrix(count),
                    }
                )
                for weights in self.kept_weights()
            }
        )
        self.confusion: dict[str, list[list[int]]] = {}
        self.judged = judged
        self.by_group = nn.ModuleDict()
        if judged is not None and judged.groups:
            self.by_group.update({w: TopOneByGroup(len(judged.groups)) for w in self.judges})
        self.teacher = teacher_of(recipe, self.model) if model is None else None
        self._smooth = LabelSmoothingCrossEntropy(augment.label_smoothing)
        self._soft = SoftTargetCrossEntropy()

    def on_train_batch_start(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        """Let frozen parts work as in a test: fixed statistics, nothing dropped."""
        super().on_train_batch_start(batch, batch_idx)
        for name, module in self.model.named_modules():
            if any(is_within(name, part) for part in self.recipe.model.freeze):
                module.eval()

    def losses(self, batch: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the cross-entropy of a batch of images (B, 3, S, S), labels (B,) and maps."""
        if self.model.aux_head is not None:
            return self._token_losses(*batch)
        images, labels = batch
        if self.mixup is not None and len(images) % 2 == 0:
            images, targets = self.mixup(images, labels)
            logits = self.network(images)
            return {"class": self._soft(logits, targets)}
        logits = self.network(images)
        hit = (logits.detach().argmax(1) == labels).float().mean()
        self.log("accuracy", hit, prog_bar=True)
        return {"class": self._smooth(logits, labels)}

    def _token_losses(self, images: Tensor, labels: Tensor, *cut: Tensor) -> dict[str, Tensor]:
        recipe, classes = self.recipe.token_labels, self.model.num_classes
        strides = self.model.variant.reductions
        size = _grid(images, strides[-1])
        mixed = on_stem_too = None
        if recipe.mix:
            mixed = mixed_box(size, recipe.mix).to(images.device)
            on_stem_too = on_stem(mixed, strides[-1] // strides[0], _grid(images, strides[0]))

        def labels_on(grid: tuple[int, int]) -> Tensor:
            if self.teacher is not None:
                return self.teacher.labels(images, grid)
            maps, box, mirrored = cut
            return dense_labels(maps, box, mirrored, classes=classes, size=grid)

        if recipe.class_target == "label":
            whole = smoothed(labels, classes, self.recipe.augment.label_smoothing)
        else:
            whole = labels_on((1, 1))[:, 0, 0]
        logits, dense = self.network(images, on_stem_too)
        return token_losses(
            logits,
            dense,
            class_targets=whole,
            dense_targets=labels_on(size),
            weight=recipe.weight,
            mixed=mixed,
        )

    def score(self, weights: str, model: nn.Module, batch: Sequence[Tensor]) -> None:
        """Count hits of a batch of images, labels and indices; an empty batch counts nothing."""
        images, labels, indices = batch
        if not len(labels):
            return
        logits = model(images).float()
        if self.judged is not None and self.judged.allowed:
            possible = logits.new_full(logits.shape[1:], -torch.inf)
            possible[list(self.judged.allowed)] = 0
            logits = logits + possible
        if self.judged is not None and self.judged.accepted:
            # The best placed of the right classes counts.
            right = [sorted(self.judged.accepted[i]) for i in indices.tolist()]
            best = [at[row[at].argmax()] for row, at in zip(logits, right, strict=True)]
            labels = labels.new_tensor(best)
        self._judge(weights).update(logits, labels)
        if weights in self.by_group:
            assert self.judged is not None
            run = len(self.judged) // len(self.judged.groups)
            self._by_group(weights).update(logits.argmax(1) == labels, indices.to(labels) // run)

    def metrics(self, weights: str) -> dict[str, float]:
        """Return top-1 and top-5 in percent, and the number of images judged.

        For ImageNet-C also the top-1 of each corruption, and mCE.

        Raises:
            ValueError: if no image could be read.
        """
        if not any(metric.update_called for metric in self._judge(weights).values()):
            raise ValueError("none of the images to be judged can be read")
        found = self._judge(weights).compute()
        self._judge(weights).reset()
        confusion = found.pop("confusion")
        self.confusion[weights] = confusion.tolist()
        images = int(confusion.sum())
        # Shares are counts over images in float32: the counts are found again exactly.
        percent = {name: 100 * round(v.item() * images) / images for name, v in found.items()}
        percent["images"] = float(images)
        if weights in self.by_group:
            assert self.judged is not None
            shares = self._by_group(weights).compute().tolist()
            self._by_group(weights).reset()
            top1 = {g: 100 * v for g, v in zip(self.judged.groups, shares, strict=True)}
            percent |= {f"top1/{group}": value for group, value in top1.items()}
            percent["mCE"] = mean_corruption_error(top1)
        return percent

    def _by_group(self, weights: str) -> TopOneByGroup:
        metric = self.by_group[weights]
        assert isinstance(metric, TopOneByGroup)
        return metric

    def _judge(self, weights: str) -> MetricCollection:
        judge = self.judges[weights]
        assert isinstance(judge, MetricCollection)
        return judge


class TopOneByGroup(Metric):
    """Top-1 of each of several groups of images, as shares; added up over the processes.

    Args:
        count: of the groups.
    """

    hits: Tensor
    images: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        for name in ("hits", "images"):
            zeros = torch.zeros(count, dtype=torch.long)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, right: Tensor, group: Tensor) -> None:
        """Count images (B,): whether the answer is right, and the group it belongs to."""
        self.hits += torch.bincount(group[right], minlength=len(self.hits))
        self.images += torch.bincount(group, minlength=len(self.images))

    def compute(self) -> Tensor:
        """Return each group's share of right answers."""
        return self.hits / self.images


def _grid(images: Tensor, stride: int) -> tuple[int, int]:
    """Return the size of the map of ``stride``; sizes round up."""
    height, width = images.shape[2:]
    return -(-height // stride), -(-width // stride)


def teacher_of(recipe: ClassificationRecipe, model: RMT) -> Teacher | None:
    """Return the teacher that labels batches, or None where maps do it or no token is labelled.

    Raises:
        ValueError: if a model with token labels has neither maps nor a teacher, or both.
    """
    wanted, data = recipe.token_labels, recipe.data
    if wanted.root and wanted.teacher:
        raise ValueError("token_labels.root and token_labels.teacher are both set; name one")
    named = wanted.root or wanted.teacher
    if model.aux_head is None and named:
        raise ValueError(f"{named!r} labels tokens; the model needs model.token_labels true")
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


def new_model(recipe: ClassificationRecipe, classes: tuple[str, ...]) -> RMT:
    """Return the recipe's network with fresh weights."""
    wanted = recipe.model
    if wanted.num_classes not in (None, len(classes)):
        raise ValueError(f"model.num_classes is {wanted.num_classes}; the data has {len(classes)}")
    model = create_model(
        wanted.name,
        len(classes),
        drop_path_rate=wanted.drop_path_rate,
        drop_rate=wanted.drop_rate,
        token_labels=wanted.token_labels,
    )
    model.info["label_names"] = list(classes)
    model.pretrained_cfg |= transforms_of(recipe)
    freeze(model, wanted.freeze)
    return model


def transforms_of(recipe: ClassificationRecipe) -> dict[str, object]:
    """Return what the weights need to know of the pictures they were trained on."""
    data = recipe.data
    return {
        "input_size": (3, data.input_size, data.input_size),
        "crop_pct": data.crop_pct,
        "interpolation": "bicubic" if data.interpolation == "random" else data.interpolation,
        "mean": tuple(data.mean),
        "std": tuple(data.std),
        "license": "other",
    }
