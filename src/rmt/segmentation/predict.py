"""A segmenter's prediction for one image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rmt import recipes
from rmt.segmentation.classes import ADE20K, colours
from rmt.segmentation.inference import label_map, normalise, resize_photo
from rmt.segmentation.overlay import draw_overlay, save_labels
from rmt.segmentation.recipe import Inference, SegmentationRecipe
from rmt.segmentation.segmenter import Segmenter


def predictor(model: Segmenter, options: Inference) -> Callable[[Image.Image], dict[str, Any]]:
    """Return a function from an RGB image to its label map and the area of each class.

    The function gives ``{"size": [h, w], "labels": (h, w) uint8, "classes": {name: {"label",
    "pixels", "share", "colour"}}}``, the largest class first, without classes that do not occur.

    Args:
        model: in eval mode.
        options: size, windows, scales and flip.
    """
    names, shades = label_names(model), palette(model)

    def predict(image: Image.Image) -> dict[str, Any]:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        labels = label_map(model, pixels, options).cpu().numpy()
        present, counts = np.unique(labels, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {
            "size": list(labels.shape),
            "labels": labels,
            "classes": {
                names[label]: {
                    "label": int(label),
                    "pixels": int(count),
                    "share": round(float(count / labels.size), 6),
                    "colour": shades[label].tolist(),
                }
                for label, count in zip(present[order], counts[order], strict=True)
            },
        }

    return predict


def pixels(model: Segmenter, image: Image.Image) -> tuple[Tensor, Image.Image]:
    """Return an image as the model sees it: (3, H, W) normalised, and the same as a PIL image."""
    bytes_ = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    bytes_ = resize_photo(bytes_, options_of(model))
    shown = Image.fromarray(bytes_.permute(1, 2, 0).numpy())
    return normalise(bytes_, *model.channel_statistics), shown


def options_of(model: Segmenter) -> Inference:
    """Return how the weights were evaluated.

    Raises:
        ValueError: if the recipe in their file has an impossible value.
    """
    kept = model.info.get("recipe", {}).get("inference", {})
    content = {"task": model.task, "inference": kept}
    return recipes.resolve(SegmentationRecipe, content).inference


def label_names(model: Segmenter) -> list[str]:
    """Return class names: the weights' own, ADE20K's for 150 classes, else numbers.

    A name that several classes have is followed by the class's number.
    """
    if names := model.info.get("label_names"):
        count = Counter(names)
        return [name if count[name] == 1 else f"{name} ({i})" for i, name in enumerate(names)]
    return list(ADE20K) if model.num_classes == 150 else [str(i) for i in range(model.num_classes)]


def palette(model: Segmenter) -> np.ndarray:
    """Return a colour (K, 3) for each class: the weights' own, or distinct ones."""
    own = model.info.get("palette")
    return np.array(own, dtype=np.uint8) if own else colours(model.num_classes)


def save_prediction(
    result: dict[str, Any], image: Image.Image, out: Path | None, stem: str
) -> dict[str, Any]:
    """Write label map and overlay to folder ``out`` (if given); return the JSON record."""
    found = result["classes"]
    record: dict[str, Any] = {"size": result["size"], "labels_png": None, "classes": found}
    if out is None:
        return record
    size = 1 + max(entry["label"] for entry in found.values())
    names, shades = [""] * size, np.zeros((size, 3), dtype=np.uint8)
    for name, entry in found.items():
        names[entry["label"]], shades[entry["label"]] = name, entry["colour"]
    record["labels_png"] = str(save_labels(result["labels"], out / f"{stem}_labels.png", shades))
    draw_overlay(image, result["labels"], out / f"{stem}.png", names=names, palette=shades)
    return record
