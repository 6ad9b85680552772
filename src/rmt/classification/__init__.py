"""Image classification: data, losses, metrics, plots and prediction."""

from __future__ import annotations

from typing import Any

from rmt.classification.models import Classifier
from rmt.classification.models import from_config as from_config
from rmt.classification.models import new_model as new_model
from rmt.modeling.rmt import RMT

TASK = RMT.task


def default_recipe(model: Classifier) -> dict[str, Any]:
    """Return a recipe to evaluate a model that has none: with the transforms of its weights."""
    cfg = model.pretrained_cfg
    keys = ("crop_pct", "interpolation", "mean", "std")
    data = {key: cfg[key] for key in keys if key in cfg}
    if "input_size" in cfg:
        data["input_size"] = cfg["input_size"][-1]
    return {"task": TASK, "model": {"name": model.config["architecture"]}, "data": data}
