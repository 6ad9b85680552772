"""Classifiers as graphs, and how their exports compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from rmt.classification.models import Classifier
from rmt.classification.predict import ClassPredictor, Options, data_config
from rmt.modeling.graphs import Graph


def graphs(model: Classifier, size: tuple[int, int]) -> dict[str, Graph]:
    """Return the classifier as one graph: normalised images (B, C, H, W) to logits (B, K).

    Raises:
        ValueError: if it has no classes.
    """
    if not model.num_classes:
        raise ValueError("this model has no classifier (num_classes is 0): there are no logits")
    return {"model": Graph(module=model, inputs=("images",), outputs=("logits",))}


def size_of(model: Classifier) -> tuple[int, int]:
    """Return the size (h, w) of the images that the model predicts."""
    height, width = data_config(model)["input_size"][1:]
    return height, width


def transforms(model: Classifier) -> dict[str, Any]:
    """Return what turns an image into the network's input."""
    config = data_config(model)
    return {
        "mean": list(config["mean"]),
        "std": list(config["std"]),
        "interpolation": config["interpolation"],
        "crop_pct": config["crop_pct"],
        "crop_mode": config["crop_mode"],
    }


@torch.no_grad()
def agreement(
    model: Classifier, exported: Classifier, images: Sequence[Image.Image]
) -> tuple[str, float]:
    """Return in how many of 100 images both name the same class first."""
    both = [ClassPredictor(each, Options(top=1)) for each in (model, exported)]
    same = 0
    for image in images:
        first, second = (own.predict([own.prepare(image)])[0]["top"][0]["label"] for own in both)
        same += first == second
    return "top-1 agreement", 100 * same / len(images)
