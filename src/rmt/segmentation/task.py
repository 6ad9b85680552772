"""Training and judging a segmenter."""

from __future__ import annotations

import logging
from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from rmt.segmentation.datamodule import Example
from rmt.segmentation.inference import label_map
from rmt.segmentation.recipe import SegmentationRecipe
from rmt.segmentation.segmenter import IGNORED, Segmenter, create_segmenter
from rmt.training.module import Engine
from rmt.training.optim import freeze

log = logging.getLogger(__name__)


class SegmentationTask(Engine):
    """A segmenter with its losses, and mIoU, mAcc and aAcc over whole images.

    Args:
        recipe: of the run.
        classes: class names of the data.
        model: to judge; None makes a fresh one to train.

    Raises:
        ValueError: if the model has other classes than the data.
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
        # mmseg writes "bed " with a blank.
        names = [name.strip() for name in self.model.info.get("label_names") or classes]
        if differing := [pair for pair in zip(names, classes, strict=True) if pair[0] != pair[1]]:
            raise ValueError(
                f"the model was made for other classes than the data has: {differing[0][0]!r} "
                f"there and {differing[0][1]!r} here, {len(differing)} differ; the data must name "
                "them as the model does, in its order"
            )
        self.classes, self.how = classes, recipe.inference
        self.judges = nn.ModuleDict(
            {
                weights: MulticlassConfusionMatrix(len(classes), ignore_index=IGNORED)
                for weights in self.kept_weights()
            }
        )
        self.images = dict.fromkeys(self.judges, 0)
        self.has_warned = False

    def losses(self, batch: Example) -> dict[str, Tensor]:
        """Return the losses of a batch of images (B, 3, S, S) and labels (B, S, S)."""
        return self.network(*batch)

    def score(self, weights: str, model: nn.Module, batch: list[Example]) -> None:
        """Count pixels by label and answer, for whole images at their own sizes."""
        assert isinstance(model, Segmenter)
        for image, labels in batch:
            answer = label_map(model, image, self.how).long()
            self._judge(weights).update(answer[None], labels[None].long())
        self.images[weights] += len(batch)

    def metrics(self, weights: str) -> dict[str, float]:
        """Return mIoU, mAcc and aAcc in percent, and the number of images judged.

        At a test also IoU and Acc of each class. Classes that no label has are named in the log.

        Raises:
            ValueError: if no image could be judged.
        """
        counted = torch.tensor(self.images[weights], device=self.device)
        images = int(self.trainer.strategy.reduce(counted, reduce_op="sum"))
        self.images[weights] = 0
        if not images:  # in all processes alike
            raise ValueError("none of the images to be judged can be read with its mask")
        confusion = self._judge(weights).compute()
        self._judge(weights).reset()
        self._warn_of_missing(confusion)
        overall, by_class = summarise(confusion, self.classes)
        overall["images"] = float(images)
        return overall | (by_class if self.trainer.state.fn == "test" else {})

    def _warn_of_missing(self, confusion: Tensor) -> None:
        """Name the classes without a labelled pixel, once a run."""
        labelled = confusion.sum(dim=1).tolist()
        missed = [name for name, pixels in zip(self.classes, labelled, strict=True) if not pixels]
        if missed and not self.has_warned and self.trainer.is_global_zero:
            self.has_warned = True
            log.warning(
                "%d of %d classes are in no label that was judged, so the metrics say nothing of "
                "how well they are found: %s",
                len(missed),
                len(self.classes),
                ", ".join(missed[:10]) + (", ..." if len(missed) > 10 else ""),
            )

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
