"""Pictures of a segmenter's test: some images with their labels and its answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from rmt.segmentation.inference import probabilities
from rmt.segmentation.overlay import MOST_NAMES, by_area, overlay, patch
from rmt.segmentation.predict import label_names, palette
from rmt.segmentation.recipe import SegmentationRecipe
from rmt.segmentation.segmenter import Segmenter
from rmt.segmentation.sources import Samples, open_splits

#: Rows of the report's sheet.
MOST_ROWS = 6


def draw(model: Segmenter, recipe: SegmentationRecipe, folder: Path) -> dict[str, str]:
    """Write ``predictions.png``; return file name -> what it shows."""
    splits = open_splits(recipe.data)
    samples = splits.test or splits.val
    chosen = np.linspace(0, len(samples) - 1, min(MOST_ROWS, len(samples))).astype(int)
    _sheet(model, recipe, samples.take(chosen.tolist())).savefig(
        folder / "predictions.png", dpi=110
    )
    return {"predictions.png": "test images: photo, labels, answer"}


def _sheet(model: Segmenter, recipe: SegmentationRecipe, samples: Samples) -> Figure:
    shades, names = palette(model), label_names(model)
    read = [samples.read(i) for i in range(len(samples))]
    # As high as wide pictures need, within reason.
    heights = [3.3 * min(2.0, labels.shape[0] / labels.shape[1]) for _, labels in read]
    figure = Figure(figsize=(10, sum(heights) + 1), layout="constrained")
    axes = figure.subplots(len(samples), 3, squeeze=False, height_ratios=heights)
    seen: set[int] = set()
    for i, (row, (image, labels)) in enumerate(zip(axes, read, strict=True)):
        photo = Image.fromarray(image)
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        answer = probabilities(model, pixels, recipe.test).argmax(dim=0).byte().cpu().numpy()
        seen |= {*by_area(labels), *by_area(answer)}
        row[0].imshow(photo)
        row[1].imshow(overlay(photo, labels, palette=shades))
        row[2].imshow(overlay(photo, answer, palette=shades))
        row[0].set_ylabel(samples.images[i].name, fontsize=7)
    for axis, title in zip(axes[0], ("image", "labels", "answer"), strict=True):
        axis.set_title(title)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.legend(
        handles=[patch(names[i], shades[i]) for i in sorted(seen)[:MOST_NAMES]],
        loc="outside lower center",
        ncols=6,
        fontsize=8,
        frameon=False,
    )
    return figure
