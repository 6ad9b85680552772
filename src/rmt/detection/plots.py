"""Plots of a detector's evaluation: precision over recall, and annotated and predicted objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from rmt.data.bad_samples import UNREADABLE, spread_readable
from rmt.detection.coco_eval import average_precision, by_class
from rmt.detection.datasets import open_splits
from rmt.detection.detector import Detector
from rmt.detection.metrics import as_coco, categories_of, of_kind
from rmt.detection.predict import ObjectPredictor, Options, draw_detections, label_names
from rmt.detection.recipe import DetectionRecipe
from rmt.detection.rle import to_mask, to_rle
from rmt.detection.samples import Samples

_MOST_ROWS, _MOST_CLASSES, _MOST_IMAGES = 4, 10, 500


def draw(model: Detector, recipe: DetectionRecipe, folder: Path) -> dict[str, str]:
    """Write ``predictions.png`` and ``precision_recall.png``; return file name -> what it shows."""
    splits = open_splits(recipe.data)
    samples, split = splits.evaluated, splits.evaluated_name
    _sheet(model, samples).savefig(folder / "predictions.png", dpi=110)
    found, read = _detect(model, samples.take(range(len(samples))[:_MOST_IMAGES]))
    curves(model, found, read).savefig(folder / "precision_recall.png", dpi=110)
    return {
        "predictions.png": f"images of the {split} split: annotated and predicted objects",
        "precision_recall.png": f"precision over recall of classes at IoU 0.5, {split} split",
    }


def _sheet(model: Detector, samples: Samples) -> Figure:
    predictor = ObjectPredictor(model, Options())
    read = spread_readable(samples.image, len(samples), _MOST_ROWS)
    figure = Figure(figsize=(11, 5 * len(read)), layout="constrained")
    axes = figure.subplots(len(read), 2, squeeze=False)
    for row, (i, image) in zip(axes, read, strict=True):
        with torch.inference_mode():
            (predicted,) = predictor.predict([predictor.prepare(image)])
        row[0].imshow(draw_detections(image, annotated(model, samples, i, image)))
        row[1].imshow(draw_detections(image, predicted["detections"]))
        row[0].set_title(f"{samples.path(i).name}: annotated", fontsize=8)
        row[1].set_title("predicted (score 0.3 and above)", fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def annotated(
    model: Detector, samples: Samples, index: int, image: Image.Image
) -> list[dict[str, Any]]:
    """Return an image's annotations in the form of detections."""
    names, categories = label_names(model), categories_of(model, samples)
    out = []
    for entry in samples.objects.get(samples.ids[index], ()):
        x, y, w, h = entry["bbox"]
        label = categories.index(entry["category_id"])
        own: dict[str, Any] = {
            "box": [x, y, x + w, y + h],
            "score": 1.0,
            "label": label,
            "name": names[label],
        }
        if entry.get("segmentation"):
            mask = to_mask(entry["segmentation"], image.height, image.width)
            own["mask"] = to_rle(mask[None])[0]
        out.append(own)
    return out


def _detect(model: Detector, samples: Samples) -> tuple[list[dict[str, Any]], Samples]:
    """Return the objects found, as COCO's results, and the images that could be read."""
    categories = categories_of(model, samples)
    found, read = [], []
    for i, image_id in enumerate(samples.ids):
        try:
            image = samples.image(i)
        except UNREADABLE:
            continue  # left out of the truth too, as in the evaluation, which has logged it
        read.append(i)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        with torch.inference_mode():
            found += as_coco(model([pixels])[0], image_id, categories)
    return found, samples.take(read)


def curves(model: Detector, found: list[dict[str, Any]], samples: Samples) -> Figure:
    """Draw precision over recall of the classes with the best AP.

    Args:
        model: that has found them.
        found: COCO's results.
        samples: the images that they were found in.
    """
    truth = samples.only()
    kinds = ("box", "mask") if model.has_masks and samples.has_masks else ("box",)
    figure = Figure(figsize=(6 * len(kinds), 5), layout="constrained")
    ids = sorted(entry["id"] for entry in truth["categories"])
    names = {entry["id"]: entry["name"] for entry in truth["categories"]}
    for axis, kind in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        _, table = average_precision(truth, of_kind(found, kind), kind)
        best = sorted(by_class(table, truth).items(), key=lambda item: -item[1])[:_MOST_CLASSES]
        for name, value in best:
            column = next(i for i, own in enumerate(ids) if names[own] == name)
            axis.plot(np.linspace(0, 1, 101), table[0, :, column], label=f"{name} (AP {value:.1f})")
        axis.set(xlabel="recall", ylabel="precision", title=f"{kind}, IoU 0.5", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
        if best:
            axis.legend(fontsize=7)
    return figure
