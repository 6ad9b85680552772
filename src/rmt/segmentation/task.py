"""Training and judging a segmenter."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from rmt.engine import Engine, freeze
from rmt.segmentation.data import Example
from rmt.segmentation.inference import probabilities
from rmt.segmentation.recipe import SegmentationRecipe
from rmt.segmentation.segmenter import IGNORED, Segmenter, create_segmenter


class SegmentationTask(Engine):
    """A segmenter with its losses, and mIoU, mAcc and aAcc over whole images.

    Args:
        recipe: of the run.
        classes: class names of the data.
        model: to judge; None makes a fresh one to train.

    Raises:
        ValueError: if the model has another number of classes than the data.
    """

    key = "mIoU"

    def __init__(
        self,
        recipe: SegmentationRecipe,
        classes: tuple[str, ...],
        *,
        model: Segmenter | None = None,
    ) -> None:
        super().__init__(model or new_model(recipe, classes), recipe)
        if self.model.num_classes != len(classes):
            raise ValueError(
                f"the model has {self.model.num_classes} classes and the data {len(classes)}"
            )
        self.classes, self.how = classes, recipe.test
        self.judges = nn.ModuleDict(
            {
                weights: MulticlassConfusionMatrix(len(classes), ignore_index=IGNORED)
                for weights in self.kept_weights()
            }
        )

    def losses(self, batch: Example) -> dict[str, Tensor]:
        """Return the losses of a batch of images (B, 3, S, S) and labels (B, S, S)."""
        return self.network(*batch)

    def score(self, weights: str, model: nn.Module, batch: list[Example]) -> None:
        """Count pixels by label and answer, for whole images at their own sizes."""
        assert isinstance(model, Segmenter)
        for image, labels in batch:
            answer = probabilities(model, image, self.how).argmax(dim=0)
            self._judge(weights).update(answer[None], labels[None].long())

    def metrics(self, weights: str) -> dict[str, float]:
        """Return mIoU, mAcc and aAcc in percent, and at a test IoU and Acc of each class."""
        confusion = self._judge(weights).compute()
        self._judge(weights).reset()
        overall, by_class = summarise(confusion, self.classes)
        return overall | (by_class if self.trainer.state.fn == "test" else {})

    def _judge(self, weights: str) -> MulticlassConfusionMatrix:
        return cast(MulticlassConfusionMatrix, self.judges[weights])


def summarise(
    confusion: Tensor, classes: tuple[str, ...]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return mmseg's metrics, in percent, of a confusion matrix (K, K), label by row.

    Intersections and unions are summed over the whole set before they are divided. ``mIoU`` is the
    mean over classes that occur in a label or an answer, ``mAcc`` over those that occur in a label,
    ``aAcc`` the share of right pixels. Ignored pixels are not in the matrix.

    Returns:
        The three; and ``IoU/NAME`` and ``Acc/NAME`` of the classes that have one.
    """
    confusion = confusion.double()
    hits, labelled, answered = confusion.diag(), confusion.sum(dim=1), confusion.sum(dim=0)
    iou, accuracy = hits / (labelled + answered - hits), hits / labelled  # NaN where absent
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
    # A set without a labelled pixel has no score; 0 keeps it from being the best.
    return {name: value.nan_to_num(0.0).item() for name, value in overall.items()}, by_class


def new_model(recipe: SegmentationRecipe, classes: tuple[str, ...]) -> Segmenter:
    """Return the recipe's network with fresh weights."""
    wanted = recipe.model
    model = create_segmenter(
        wanted.head,
        wanted.backbone,
        len(classes),
        channels=wanted.channels,
        drop_path_rate=wanted.drop_path_rate,
    )
    model.info["label_names"] = list(classes)
    model.info["pretrained_cfg"] = {"mean": recipe.data.mean, "std": recipe.data.std}
    freeze(model, wanted.freeze)
    return model
