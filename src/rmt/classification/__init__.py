"""Image classification: data, losses, and what a release file of a classifier looks like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rmt.classification.recipe import ClassificationRecipe
from rmt.model import RMT
from rmt.registry import default_cfgs
from rmt.release import BACKBONE, CLASSIFIER, variant_of_release
from rmt.variants import VARIANTS

if TYPE_CHECKING:
    from lightning import LightningDataModule

    from rmt.engine import Engine

TASK = "classification"
RULES = BACKBONE + CLASSIFIER
RECIPE = ClassificationRecipe
from_config = RMT.from_config


def config_of_release(
    state: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the configuration of a release classifier, or None if ``state`` is no classifier.

    A file may carry the auxiliary head of token labelling; its input width tells whether it reads
    the last map or the head's tokens.

    Raises:
        ValueError: if it is an RMT of the layout of December 2023, or of no known size.
    """
    if not any(key.startswith("layers.") for key in state):
        return None
    name = variant_of_release(state)
    aux = state.get("aux_head.weight")
    tag = "in1k" if aux is None else "token_label_in1k"
    classes = state["head.bias"].shape[0] if "head.bias" in state else 0
    return {
        "task": TASK,
        "architecture": name,
        "num_classes": classes,
        "model_args": {
            "in_chans": state["patch_embed.proj.0.weight"].shape[1],
            "token_labels": aux is not None,
            "aux_width": None if aux is None else aux.shape[1],
        },
        "pretrained_cfg": default_cfgs[name].cfgs[tag].to_dict(),
    }


def config_of_ours(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the configuration of a bare state dict of :class:`rmt.RMT`, or None if it is none.

    It brings no description, so the variant is told by depths and widths alone.
    """
    stem = state.get("stem.0.weight", state.get("stem.proj.weight"))
    blocks = [
        key.split(".")
        for key in state
        if re.fullmatch(r"stages\.\d\.blocks\.\d+\.norm1\.weight", key)
    ]
    if stem is None or not blocks:
        return None
    stages = sorted({int(block[1]) for block in blocks})
    depths = tuple(sum(int(block[1]) == stage for block in blocks) for stage in stages)
    dims = tuple(len(state[f"stages.{stage}.blocks.0.norm1.weight"]) for stage in stages)
    name = next((n for n, v in VARIANTS.items() if (v.depths, v.dims) == (depths, dims)), None)
    if name is None:
        return None
    aux = state.get("aux_head.weight")
    return {
        "task": TASK,
        "architecture": name,
        "num_classes": len(state["head.fc.bias"]) if "head.fc.bias" in state else 0,
        "model_args": {
            "in_chans": stem.shape[1],
            "token_labels": aux is not None,
            "aux_width": None if aux is None else aux.shape[1],
        },
        "pretrained_cfg": next(iter(default_cfgs[name].cfgs.values())).to_dict(),
    }


def default_recipe(model: RMT) -> dict[str, Any]:
    """Return a recipe to judge a model that brings none: the transforms of its weights."""
    cfg = model.pretrained_cfg
    keys = ("crop_pct", "interpolation", "mean", "std")
    data = {key: cfg[key] for key in keys if key in cfg}
    if "input_size" in cfg:
        data["input_size"] = cfg["input_size"][-1]
    return {"task": TASK, "model": {"name": model.variant.name}, "data": data}


def make(
    recipe: ClassificationRecipe, *, model: RMT | None = None
) -> tuple[Engine, LightningDataModule]:
    """Return the trainer's two halves for a recipe; ``model`` None makes a fresh one.

    A model that was not trained here has seen none of these images: without a split of their own
    all of them are judged.
    """
    # Imported here: loading weights needs neither data nor Lightning.
    from rmt.classification.data import ClassificationData
    from rmt.classification.task import ClassificationTask

    if model is not None and "recipe" not in model.info:
        recipe = replace(recipe, data=replace(recipe.data, val_fraction=1.0))
    data = ClassificationData(recipe)
    return ClassificationTask(recipe, data.classes, model=model, judged=data.judged()), data
