"""Report of a classifier's evaluation: calibration, precision and recall, and doubted labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_average_precision,
    multiclass_calibration_error,
    multiclass_precision_recall_curve,
)

from rmt.classification import multi_label_plots
from rmt.classification.datamodule import ClassificationData
from rmt.classification.models import Classifier
from rmt.classification.samples import Samples
from rmt.data.plots import MOST_CLASSES, confusion, write_table

#: Bins of confidence of the reliability diagram, as usual since arXiv 1706.04599.
BINS = 15
_MOST_CURVES, _SIDE = 10, 6


@dataclass(frozen=True)
class Evaluated:
    """The predictions for the readable images of a split.

    Attributes:
        samples: the images.
        probabilities: (N, K).
        labels: (N,).
        indices: (N,), of each image in the split.
    """

    samples: Samples
    probabilities: Tensor
    labels: Tensor
    indices: Tensor

    @property
    def own(self) -> Tensor:
        """The probability of each image's label, (N,)."""
        return self.probabilities.gather(1, self.labels[:, None])[:, 0]

    @property
    def best(self) -> tuple[Tensor, Tensor]:
        """The highest probability of each image, (N,), and its class, (N,)."""
        return self.probabilities.max(1)

    @property
    def table(self) -> np.ndarray:
        """The number of images by true class (row) and predicted class, (K, K)."""
        count = self.probabilities.shape[1]
        pairs = self.labels * count + self.best[1]
        return torch.bincount(pairs, minlength=count**2).view(count, count).numpy()


def draw(model: Classifier, data: ClassificationData, folder: Path) -> dict[str, str]:
    """Write the plots and ``images.csv``; return file name -> what it shows.

    Args:
        model: in eval mode, of the data's classes.
        data: whose test images are predicted.
        folder: to write into.
    """
    if data.recipe.data.multi_label:
        return multi_label_plots.draw_evaluation(model, data, folder)
    found = evaluated(model, data, data.splits.evaluated)
    classes = data.classes
    error = multiclass_calibration_error(
        found.probabilities, found.labels, len(classes), n_bins=BINS
    ).item()
    _reliability(found, error).savefig(folder / "reliability.png", dpi=110)
    _curves(found).savefig(folder / "precision_recall.png", dpi=110)
    order = found.own.argsort(stable=True)
    _sheet(found, order[: _SIDE * _SIDE].tolist()).savefig(folder / "doubted.png", dpi=110)
    _write_images(found, order.tolist(), folder / "images.csv")
    shown = {
        "reliability.png": "accuracy over confidence; the expected calibration error is "
        f"{100 * error:.1f} % ({BINS} bins)",
        "precision_recall.png": "precision over recall of each class against the others"
        + (", of those with the lowest AP" if len(classes) > _MOST_CURVES else ""),
        "doubted.png": "the images whose label the model doubts most: wrong labels or mistakes",
        "images.csv": "every image with label, prediction and loss, the most doubted label first",
    }
    if len(classes) <= MOST_CLASSES:
        confusion(found.table, classes).savefig(folder / "confusion.png", dpi=110)
        shown["confusion.png"] = "number of images by true class (row) and predicted class (column)"
    return shown


@torch.inference_mode()
def evaluated(model: Classifier, data: ClassificationData, samples: Samples) -> Evaluated:
    """Return the predictions for some images of a data set.

    Args:
        model: in eval mode, of the data's classes.
        data: that reads and transforms the images.
        samples: the images.
    """
    device = next(model.parameters()).device
    parts = []
    for images, labels, indices in data.eval_loader(samples):
        if len(labels):
            logits, labels = samples.rule.apply(
                model(images.to(device)).float().cpu(), labels, indices
            )
            parts.append((logits.softmax(-1), labels, indices))
    return Evaluated(samples, *(torch.cat(own) for own in zip(*parts, strict=True)))


def _reliability(found: Evaluated, error: float) -> Figure:
    confidence, predicted = found.best
    right = (predicted == found.labels).float()
    edges = torch.linspace(0, 1, BINS + 1)
    at = torch.bucketize(confidence, edges[1:-1])
    count = torch.bincount(at, minlength=BINS)
    accuracy = torch.bincount(at, weights=right, minlength=BINS) / count  # NaN where empty
    mean = torch.bincount(at, weights=confidence, minlength=BINS) / count
    figure = Figure(figsize=(5, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="perfectly calibrated")
    centres = (edges[:-1] + edges[1:]).numpy() / 2
    upper.bar(centres, accuracy.nan_to_num().numpy(), width=1 / BINS, edgecolor="w", alpha=0.8)
    upper.plot(mean.numpy(), accuracy.numpy(), "o", color="k", markersize=3, label="bins")
    upper.set(ylabel="accuracy", ylim=(0, 1.02), xlim=(0, 1))
    upper.set_title(f"expected calibration error {100 * error:.1f} %", fontsize=10)
    upper.legend(fontsize=8)
    lower.bar(centres, count.numpy(), width=1 / BINS, edgecolor="w", color="0.5")
    lower.set(xlabel="confidence: probability of the predicted class", ylabel="images")
    return figure


def _curves(found: Evaluated) -> Figure:
    classes = found.samples.classes
    count = found.probabilities.shape[1]
    occurring = found.labels.unique().tolist()
    values = multiclass_average_precision(
        found.probabilities, found.labels, count, average=None, thresholds=None
    )
    worst = sorted(occurring, key=lambda label: values[label].item())[:_MOST_CURVES]
    figure = Figure(figsize=(7, 5), layout="constrained")
    axis = figure.subplots()
    for label in worst:
        one_hot = (found.labels == label).long()
        pair = torch.stack([1 - found.probabilities[:, label], found.probabilities[:, label]], 1)
        precision, recall, _ = multiclass_precision_recall_curve(pair, one_hot, 2)
        name = f"{classes[label]} (AP {100 * values[label].item():.1f})"
        axis.plot(recall[1].numpy(), precision[1].numpy(), label=name.replace("$", r"\$"))
    mean = 100 * values[occurring].mean().item()
    axis.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02), title=f"mean AP {mean:.1f}")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    return figure


def _sheet(found: Evaluated, chosen: list[int]) -> Figure:
    classes, own = found.samples.classes, found.own
    scores, best = found.best
    rows = -(-len(chosen) // _SIDE)
    figure = Figure(figsize=(1.9 * _SIDE, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, _SIDE, squeeze=False).ravel()
    for axis, at in zip(axes[: len(chosen)], chosen, strict=True):
        label, predicted = int(found.labels[at]), int(best[at])
        axis.imshow(found.samples.image(int(found.indices[at])))
        text = f"label: {classes[label][:24]} ({100 * own[at]:.0f} %)\n"
        text += f"predicted: {classes[predicted][:20]} ({100 * scores[at]:.0f} %)"
        colour = "green" if label == predicted else "red"
        axis.set_title(text, fontsize=7, color=colour, parse_math=False)
    for axis in axes:
        axis.set_axis_off()
    return figure


def _write_images(found: Evaluated, order: list[int], path: Path) -> None:
    classes, own = found.samples.classes, found.own.tolist()
    scores, predicted = (each.tolist() for each in found.best)
    rows = [
        {
            "image": found.samples.name(int(found.indices[i])),
            "label": classes[int(found.labels[i])],
            "predicted": classes[predicted[i]],
            "score": round(scores[i], 6),
            "label_score": round(own[i], 6),
            "loss": round(float(-np.log(max(own[i], 1e-12))), 4),
        }
        for i in order
    ]
    write_table(path, rows)
