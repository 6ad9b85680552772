"""Plots of a classifier's evaluation: confusion, recall of each class, a sheet of predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rmt.classification import multi_label_plots
from rmt.classification.datamodule import ClassificationData
from rmt.classification.evaluation import Evaluated, evaluated
from rmt.classification.models import Classifier
from rmt.classification.recipe import ClassificationRecipe
from rmt.data.plots import MOST_CLASSES, class_bars, confusion
from rmt.files import for_people, write_json
from rmt.messages import printable

#: Of more test images than this, an even sample is drawn: the plots would not gain from more.
MOST_IMAGES = 10_000


def draw(model: Classifier, recipe: ClassificationRecipe, folder: Path) -> dict[str, str]:
    """Write the plots and the accuracy of each class; return file name -> what it shows."""
    data = ClassificationData(recipe)
    if data.recipe.data.multi_label:
        return multi_label_plots.draw(model, data, folder)
    samples, split = data.splits.evaluated, data.splits.evaluated_name
    if len(samples) > MOST_IMAGES:
        samples = samples.take(np.linspace(0, len(samples) - 1, MOST_IMAGES).astype(int).tolist())
    found = evaluated(model.eval(), data, samples)
    labels, predicted = found.labels.numpy(), found.best[1].numpy()
    classes = accuracy_of_classes(labels, predicted, samples.classes)
    write_json(folder / "classes.json", for_people(classes))
    _sheet(found).savefig(folder / "predictions.png", dpi=110)
    _recall(classes, split).savefig(folder / "recall.png", dpi=110)
    shown = {
        "predictions.png": f"images of the {split} split, of all classes; the wrong ones first",
        "classes.json": f"images, recall and precision of each class on the {split} split",
        "recall.png": f"share of each class's images that are recognised, on the {split} split",
    }
    if len(samples.classes) <= MOST_CLASSES:
        confusion(found.table, samples.classes).savefig(folder / "confusion.png", dpi=110)
        shown["confusion.png"] = (
            f"number of images by true class (row) and predicted class, on the {split} split"
        )
    return shown


def accuracy_of_classes(
    labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]
) -> dict[str, dict[str, float | int | None]]:
    """Return the number of images of each class, and its recall and precision in percent.

    Args:
        labels: (N,) true classes.
        predicted: (N,) predicted classes.
        names: of the classes.

    Returns:
        Name -> ``images``, ``recall`` (None without images), ``precision`` (None if the class was
        never predicted).
    """
    count = len(names)
    hits = np.bincount(labels[labels == predicted], minlength=count)
    images, guesses = (np.bincount(each, minlength=count) for each in (labels, predicted))

    def share(at: int, of: np.ndarray) -> float | None:
        return 100 * float(hits[at]) / float(of[at]) if of[at] else None

    return {
        name: {
            "images": int(images[at]),
            "recall": share(at, images),
            "precision": share(at, guesses),
        }
        for at, name in enumerate(names)
    }


def _recall(classes: dict[str, dict[str, Any]], split: str) -> Figure:
    rows = [(own["recall"], name, own["images"]) for name, own in classes.items() if own["images"]]
    rows.sort(key=lambda row: row[0])
    shown = rows[:MOST_CLASSES]
    names = [f"{printable(name, limit=40)} ({images})" for _, name, images in shown]
    figure = class_bars([recall for recall, _, _ in shown], names, decimals=0)
    (axis,) = figure.axes
    lowest = f", the lowest {len(shown)} of {len(rows)}" if len(rows) > len(shown) else ""
    axis.set_title(f"recall on the {split} split{lowest} (number of images)", fontsize=10)
    axis.set_xlabel("images that are recognised, in percent")
    return figure


def _sheet(found: Evaluated, side: int = 6) -> Figure:
    samples, labels, indices = found.samples, found.labels.numpy(), found.indices.numpy()
    scores, predicted = (each.numpy() for each in found.best)
    wrong = np.flatnonzero(labels != predicted)
    wrong = by_class_in_turn(wrong[np.argsort(-scores[wrong], kind="stable")], labels)
    right = by_class_in_turn(np.flatnonzero(labels == predicted), labels)
    chosen = [*wrong[: side * side // 2], *right][: side * side]
    figure = Figure(figsize=(1.9 * side, 2.1 * side), layout="constrained")
    axes = figure.subplots(side, side).ravel()[: len(chosen)]
    for axis, at in zip(axes, chosen, strict=True):
        axis.imshow(samples.image(int(indices[at])))
        good = labels[at] == predicted[at]
        said, true = (
            printable(samples.classes[each[at]], limit=22) for each in (predicted, labels)
        )
        text = f"predicted: {said} ({100 * scores[at]:.0f} %)"
        if not good:
            text += f",\ntrue: {true}"
        colour = "green" if good else "red"
        axis.set_title(text, fontsize=8, color=colour, parse_math=False)
    for axis in figure.axes:
        axis.set_axis_off()
    return figure


def by_class_in_turn(indices: np.ndarray, labels: np.ndarray) -> list[int]:
    """Return indices so that all classes take turns: the first of each, the second of each, ..."""
    turns: Counter[int] = Counter()
    ranked = []
    for index in indices.tolist():
        label = int(labels[index])
        ranked.append((turns[label], len(ranked), index))
        turns[label] += 1
    return [index for _, _, index in sorted(ranked)]
