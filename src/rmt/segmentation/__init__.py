"""Semantic segmentation: two heads on RMT or any other backbone, data, metrics and prediction."""

from __future__ import annotations

from typing import Any

from rmt.segmentation.models import new_model as new_model
from rmt.segmentation.segmenter import Segmenter, create_segmenter

__all__ = ["TASK", "Segmenter", "create_segmenter", "default_recipe", "new_model"]

TASK = Segmenter.task


def default_recipe(model: Segmenter) -> dict[str, Any]:
    """Return a recipe to evaluate a model that has none: the release's evaluation on ADE20K."""
    mean, std = model.channel_statistics
    wanted = {"head": model.architecture, "backbone": model.config["model_args"]["backbone"]}
    return {"task": TASK, "model": wanted, "data": {"mean": list(mean), "std": list(std)}}
