"""Top-1 and top-5 accuracy of a classifier, by the data set's rule of evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection, SumMetric
from torchmetrics.classification import MulticlassAccuracy

from rmt.classification.models import Classifier
from rmt.classification.multi_label import MultiLabelMetrics
from rmt.classification.samples import MultiLabelSamples, Samples

#: The other accuracy besides top-1, where there are more classes than that.
TOP = 5


def metrics_of(
    model: Classifier, samples: Samples, *, per_class: bool
) -> ClassificationMetrics | MultiLabelMetrics:
    """Return the metrics of a model on some images, whose labels must be of its kind.

    Args:
        model: the classifier.
        samples: the images to evaluate.
        per_class: also return the AP of each class, where images have several labels.

    Raises:
        ValueError: if the model predicts one class and the images have several labels, or the
            other way round.
    """
    if samples.multi_label != bool(model.info.get("multi_label")):
        trained, found = ("several labels", "one label")[:: -1 if samples.multi_label else 1]
        raise ValueError(
            f"the model was trained on images with {trained} each, and these have {found} each: "
            "set data.multi_label, or train a model on such data"
        )
    if isinstance(samples, MultiLabelSamples):
        return MultiLabelMetrics(samples, per_class=per_class)
    return ClassificationMetrics(model, samples)


class ClassificationMetrics(nn.Module):
    """Accuracy of one set of weights over a split, summed over processes.

    Args:
        model: the classifier; only its number of classes is read.
        samples: the images to evaluate; their rule says which predictions are right.
    """

    def __init__(self, model: Classifier, samples: Samples) -> None:
        super().__init__()
        self.samples = samples
        self.notes: list[str] = []
        count = model.num_classes
        ranks = {f"top{k}": k for k in (1, TOP) if k < count}
        self.accuracy = MetricCollection(
            {name: MulticlassAccuracy(count, average="micro", top_k=k) for name, k in ranks.items()}
        )
        groups = samples.rule.groups
        self.by_group = TopOneByGroup(len(groups)) if groups else None
        self.images = SumMetric()

    def update(self, model: nn.Module, batch: Sequence[Tensor]) -> None:
        """Count hits in images (B, 3, S, S), labels (B,), indices (B,); B may be 0."""
        images, labels, indices = batch
        self.images.update(len(labels))
        if not len(labels):
            return
        rule = self.samples.rule
        logits, labels = rule.apply(model(images).float(), labels, indices)
        self.accuracy.update(logits, labels)
        if self.by_group is not None:
            run = len(self.samples) // len(rule.groups)
            self.by_group.update(logits.argmax(1) == labels, indices.to(labels) // run)

    def compute(self) -> dict[str, float]:
        """Return top-1 and top-5 in percent and the number of images, and reset.

        Of five classes or fewer, all are among the top five: then there is no ``top5``.

        A rule with groups adds ``top1/GROUP`` and its own summary.

        Raises:
            ValueError: if no image could be read.
        """
        images = int(self.images.compute())
        if not images:
            raise ValueError("none of the images to evaluate can be read")
        found = self.accuracy.compute()
        # The accuracies are counts / images in float32; rounding recovers the exact counts.
        percent = {name: 100 * round(v.item() * images) / images for name, v in found.items()}
        percent["images"] = float(images)
        if self.by_group is not None:
            accuracies = self.by_group.compute().tolist()
            groups = self.samples.rule.groups
            top1 = {name: 100 * value for name, value in zip(groups, accuracies, strict=True)}
            percent |= {f"top1/{name}": value for name, value in top1.items()}
            percent |= self.samples.rule.summarise(top1)
            self.by_group.reset()
        self.accuracy.reset()
        self.images.reset()
        return percent


class TopOneByGroup(Metric):
    """Top-1 accuracy of each of several groups of images, as a fraction, over all processes.

    Args:
        count: number of groups.
    """

    hits: Tensor
    images: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        for name in ("hits", "images"):
            zeros = torch.zeros(count, dtype=torch.long)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, right: Tensor, group: Tensor) -> None:
        """Count images (B,): whether each prediction is right, and the group of each image."""
        self.hits += torch.bincount(group[right], minlength=len(self.hits))
        self.images += torch.bincount(group, minlength=len(self.images))

    def compute(self) -> Tensor:
        """Return each group's fraction of right predictions."""
        return self.hits / self.images
