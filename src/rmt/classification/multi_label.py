"""Several labels per image: the loss, and mean average precision (mAP)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from rmt.classification.models import Classifier
from rmt.classification.recipe import ClassificationRecipe
from rmt.classification.samples import MultiLabelSamples, Samples
from rmt.classification.transforms import mixup_of
from rmt.data.processes import gathered
from rmt.modeling.necks import full_precision

Named = dict[str, Tensor]


class MultiLabelLoss:
    """Binary cross-entropy of each class, averaged over images and classes.

    Label smoothing moves each target towards ½. Mixup and CutMix mix targets as they mix images.

    Args:
        recipe: of the run.
        model: the network to train.
        train: the training images, whose classes ``data.balance`` weighs.
    """

    def __init__(
        self, recipe: ClassificationRecipe, model: Classifier, train: Samples | None = None
    ) -> None:
        augment = recipe.augment
        self.smoothing = augment.label_smoothing
        self.mixup = mixup_of(augment, label_smoothing=0.0)
        weights = None
        if recipe.data.balance == "loss" and isinstance(train, MultiLabelSamples):
            weights = positive_weights(train)
        self._loss = BinaryCrossEntropy(pos_weight=weights)

    def __call__(
        self, network: Callable[..., Tensor], batch: Sequence[Tensor]
    ) -> tuple[Named, Named]:
        """Return the loss of a batch, and nothing else to log.

        Args:
            network: the model to train, possibly compiled.
            batch: images (B, 3, S, S) and targets (B, K), 0 or 1.
        """
        images, targets = batch
        if self.mixup is not None:
            images, targets = self.mixed(images, targets)
        logits = full_precision(network(images))
        targets = targets.to(logits) * (1 - self.smoothing) + self.smoothing / 2
        return {"class": self._loss.to(logits.device)(logits, targets)}, {}

    def mixed(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return images mixed in pairs (in place) and their targets (B, K), mixed alike.

        timm mixes an even number, of one label each. Here each image is a class of its own, so that
        the result (B, B) says how much of which image it is.
        """
        assert self.mixup is not None
        pairs = len(images) // 2 * 2
        if not pairs:
            return images, targets
        self.mixup.num_classes = pairs
        _, shares = self.mixup(images[:pairs], torch.arange(pairs, device=images.device))
        return images, torch.cat([shares.to(targets) @ targets[:pairs], targets[pairs:]])


def positive_weights(samples: MultiLabelSamples) -> Tensor:
    """Return for each class the images without it over those with it, (K,); 1 if there is none."""
    positives = samples.targets().sum(0)
    return torch.where(positives > 0, (len(samples) - positives) / positives.clamp(min=1), 1.0)


class MultiLabelMetrics(nn.Module):
    """mAP of one set of weights over a split, over all processes.

    Args:
        samples: the images to evaluate.
        per_class: also return the AP of each class.
    """

    def __init__(self, samples: MultiLabelSamples, *, per_class: bool) -> None:
        super().__init__()
        self.classes, self.per_class = samples.classes, per_class
        self.notes: list[str] = []
        self.seen: list[tuple[Tensor, Tensor]] = []

    def update(self, model: nn.Module, batch: Sequence[Tensor]) -> None:
        """Keep scores and targets of images (B, 3, S, S), targets (B, K); B may be 0."""
        images, targets, _ = batch
        if len(targets):
            self.seen.append((model(images).float().sigmoid().cpu(), targets.cpu()))

    def compute(self) -> dict[str, float]:
        """Return mAP in percent and the number of images, and reset.

        mAP is the mean of the average precision (AP, scikit-learn's) of the classes that an image
        has. Without any it is 0, which never decides on the best weights.

        Raises:
            ValueError: if no image could be read.
        """
        from sklearn.metrics import average_precision_score

        seen, self.seen = gathered(self.seen), []
        if not seen:
            raise ValueError("none of the images to evaluate can be read")
        scores, targets = (torch.cat(own).numpy() for own in zip(*seen, strict=True))
        found = {
            name: 100 * average_precision_score(targets[:, at] > 0, scores[:, at])
            for at, name in enumerate(self.classes)
            if targets[:, at].any()
        }
        mean = float(np.mean(list(found.values()))) if found else 0.0
        own = {f"AP/{name}": value for name, value in found.items()} if self.per_class else {}
        return {"mAP": mean, "images": float(len(scores))} | own
