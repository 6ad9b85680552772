"""mIoU, mAcc and aAcc of a segmenter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from rmt.segmentation.inference import label_map
from rmt.segmentation.recipe import Inference
from rmt.segmentation.segmenter import IGNORED, Segmenter


class SegmentationMetrics(nn.Module):
    """Intersection over union of one set of weights over a split, summed over processes.

    Args:
        classes: class names.
        inference: how images are segmented.
        per_class: also return the metrics of each class.
    """

    def __init__(self, classes: Sequence[str], inference: Inference, *, per_class: bool) -> None:
        super().__init__()
        self.classes, self.inference, self.per_class = tuple(classes), inference, per_class
        self.confusion = MulticlassConfusionMatrix(len(classes), ignore_index=IGNORED)
        self.images = SumMetric()
        self.notes: list[str] = []

    def update(self, model: nn.Module, batch: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Count pixels by true and predicted class, for images at their original size."""
        assert isinstance(model, Segmenter)
        self.images.update(len(batch))
        for image, labels in batch:
            predicted = label_map(model, image, self.inference).long()
            self.confusion.update(predicted[None], labels[None].long())

    def compute(self) -> dict[str, float]:
        """Return the metrics in percent and the number of images, and reset.

        Classes without a labelled pixel are named in ``notes``.

        Raises:
            ValueError: if no image could be read.
        """
        images = int(self.images.compute())
        if not images:  # the same in all processes
            raise ValueError("none of the images to evaluate can be read together with its mask")
        confusion = self.confusion.compute()
        self.confusion.reset()
        self.images.reset()
        self.notes = _missing(confusion, self.classes)
        overall, by_class = summarise(confusion, self.classes)
        return overall | {"images": float(images)} | (by_class if self.per_class else {})


def summarise(
    confusion: Tensor, classes: tuple[str, ...]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return mmseg's metrics, in percent, of a confusion matrix (K, K) with one row per true class.

    Intersections and unions are summed over all images before they are divided. ``mIoU`` is the
    mean over classes that occur in a label or a prediction, ``mAcc`` that over classes that occur
    in a label, and ``aAcc`` the percentage of correct pixels. Ignored pixels are not counted.

    Returns:
        These three; and ``IoU/NAME`` and ``Acc/NAME`` of the classes for which they are defined.
    """
    confusion = confusion.double()
    hits, labelled, predicted = confusion.diag(), confusion.sum(dim=1), confusion.sum(dim=0)
    iou, accuracy = hits / (labelled + predicted - hits), hits / labelled  # NaN where absent
    overall = {
        "mIoU": 100 * iou.nanmean(),
        "mAcc": 100 * accuracy.nanmean(),
        "aAcc": 100 * hits.sum() / labelled.sum(),
    }
    by_class = {
        f"{kind}/{name}": 100 * value.item()
        for kind, values in (("IoU", iou), ("Acc", accuracy))
        for name, value in zip(classes, values, strict=True)
        if not torch.isnan(value)
    }
    # Without labelled pixels nothing is defined; with 0 it never decides on the best weights.
    return {name: value.nan_to_num(0.0).item() for name, value in overall.items()}, by_class


def _missing(confusion: Tensor, classes: Sequence[str]) -> list[str]:
    """Return a note on the classes without a labelled pixel, if there are any."""
    labelled = confusion.sum(dim=1).tolist()
    missing = [name for name, pixels in zip(classes, labelled, strict=True) if not pixels]
    if not missing:
        return []
    return [
        f"{len(missing)} of {len(classes)} classes have no labelled pixel in the evaluated images, "
        f"so the metrics do not cover them: {', '.join(missing[:10])}"
        + (", ..." if len(missing) > 10 else "")
    ]
