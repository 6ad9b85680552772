"""Plots of a classifier's evaluation: confusion matrix, and a sheet of predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from rmt.classification.datamodule import ClassificationData
from rmt.classification.recipe import ClassificationRecipe
from rmt.classification.samples import Samples
from rmt.data.plots import MOST_CLASSES, confusion
from rmt.modeling.rmt import RMT

#: Of more test images than this, an even sample is drawn: the plots would not gain from more.
MOST_IMAGES = 10_000


def draw(model: RMT, recipe: ClassificationRecipe, folder: Path) -> dict[str, str]:
    """Write ``confusion.png`` and ``predictions.png``; return file name -> what it shows."""
    data = ClassificationData(recipe)
    samples = data.splits.evaluated
    if len(samples) > MOST_IMAGES:
        samples = samples.take(np.linspace(0, len(samples) - 1, MOST_IMAGES).astype(int).tolist())
    labels, predicted, scores, indices = predict_all(model, data, samples)
    shown = {"predictions.png": "test images with the predicted class; wrong ones first, in red"}
    _sheet(samples, labels, predicted, scores, indices).savefig(folder / "predictions.png", dpi=110)
    if len(samples.classes) <= MOST_CLASSES:
        table = _counts(labels, predicted, len(samples.classes))
        confusion(table, samples.classes).savefig(folder / "confusion.png", dpi=110)
        shown["confusion.png"] = (
            "number of test images by true class (row) and predicted class (column)"
        )
    return shown


@torch.inference_mode()
def predict_all(model: RMT, data: ClassificationData, samples: Samples) -> tuple[np.ndarray, ...]:
    """Return true class, predicted class, score and index of each readable image."""
    found = []
    for images, labels, indices in data.eval_loader(samples):
        if len(labels):
            score, best = model.eval()(images).softmax(-1).max(-1)
            found.append((labels, best, score, indices))
    return tuple(torch.cat(parts).numpy() for parts in zip(*found, strict=True))


def _counts(labels: np.ndarray, predicted: np.ndarray, count: int) -> np.ndarray:
    """Return the number of images by true (row) and predicted class, (K, K)."""
    return np.bincount(labels * count + predicted, minlength=count * count).reshape(count, count)


def _sheet(
    samples: Samples,
    labels: np.ndarray,
    predicted: np.ndarray,
    scores: np.ndarray,
    indices: np.ndarray,
    side: int = 6,
) -> Figure:
    wrong = np.flatnonzero(labels != predicted)
    wrong = wrong[np.argsort(-scores[wrong])]  # the most confident mistakes first
    right = np.flatnonzero(labels == predicted)
    right = right[np.linspace(0, len(right) - 1, min(side * side, len(right))).astype(int)]
    chosen = [*wrong[: side * side // 2], *right][: side * side]
    figure = Figure(figsize=(1.7 * side, 2.0 * side), layout="constrained")
    axes = figure.subplots(side, side).ravel()[: len(chosen)]
    for axis, at in zip(axes, chosen, strict=True):
        axis.imshow(samples.image(int(indices[at])))
        good = labels[at] == predicted[at]
        text = f"predicted: {samples.classes[predicted[at]]} ({100 * scores[at]:.0f} %)"
        if not good:
            text += f"\ntrue: {samples.classes[labels[at]]}"
        axis.set_title(text, fontsize=8, color="green" if good else "red")
    for axis in figure.axes:
        axis.set_axis_off()
    return figure
