"""Plots of a segmenter's evaluation: images with true and predicted classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

from rmt.data.bad_samples import spread_readable
from rmt.segmentation.datasets import open_splits
from rmt.segmentation.inference import label_map
from rmt.segmentation.overlay import MOST_NAMES, by_area, overlay, patch
from rmt.segmentation.predict import label_names, palette
from rmt.segmentation.recipe import SegmentationRecipe
from rmt.segmentation.samples import Samples
from rmt.segmentation.segmenter import Segmenter

#: Images on the sheet.
MOST_ROWS = 6


def draw(model: Segmenter, recipe: SegmentationRecipe, folder: Path) -> dict[str, str]:
    """Write ``predictions.png``; return file name -> what it shows."""
    splits = open_splits(recipe.data)
    samples = splits.evaluated
    chosen = [index for index, _ in spread_readable(samples.read, len(samples), MOST_ROWS)]
    sheet(model, recipe, samples, chosen).savefig(folder / "predictions.png", dpi=110)
    split = splits.evaluated_name
    return {"predictions.png": f"images of the {split} split: true and predicted classes"}


def sheet(
    model: Segmenter, recipe: SegmentationRecipe, samples: Samples, chosen: Sequence[int]
) -> Figure:
    """Draw some images with their true and predicted classes, one below the other."""
    shades, names = palette(model), label_names(model)
    read = [(index, samples.read(index)) for index in chosen]
    # Rows as high as the images need, within limits.
    heights = [3.3 * min(2.0, labels.shape[0] / labels.shape[1]) for _, (_, labels) in read]
    figure = Figure(figsize=(10, sum(heights) + 1), layout="constrained")
    axes = figure.subplots(len(read), 3, squeeze=False, height_ratios=heights)
    seen: set[int] = set()
    for row, (index, (image, labels)) in zip(axes, read, strict=True):
        photo = Image.fromarray(image)
        pixels = torch.from_numpy(image).permute(2, 0, 1)
        predicted = label_map(model, pixels, recipe.inference).cpu().numpy()
        seen |= {*by_area(labels), *by_area(predicted)}
        row[0].imshow(photo)
        row[1].imshow(overlay(photo, labels, palette=shades))
        row[2].imshow(overlay(photo, predicted, palette=shades))
        row[0].set_ylabel(samples.images[index].name, fontsize=7, parse_math=False)
    for axis, title in zip(axes[0], ("image", "true", "predicted"), strict=True):
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
