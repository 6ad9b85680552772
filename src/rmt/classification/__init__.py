"""Image classification: data, losses, and what a release file of a classifier looks like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rmt.classification.models import new_model as new_model
from rmt.modeling.registry import STARRED_TAG, default_cfgs
from rmt.modeling.rmt import RMT
from rmt.weights.release import (
    BACKBONE,
    CLASSIFIER,
    class_count,
    image_channels,
    variant_like,
    variant_of_release,
)

TASK = "classification"
RULES = BACKBONE + CLASSIFIER


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
    return {
        "task": TASK,
        "architecture": name,
        "num_classes": class_count(state.get("head.weight"), state.get("head.bias")),
        "model_args": {
            "in_chans": image_channels(state.get("patch_embed.proj.0.weight")),
            **_auxiliary(state),
        },
        "pretrained_cfg": _transforms(name, state),
        "published_recipe": f"imagenet/{name}" + ("_tl" if "aux_head.weight" in state else ""),
    }


def config_of_ours(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return the configuration of a bare state dict of :class:`rmt.RMT`, or None if it is none.

    It brings no description, so the variant is told by depths and widths alone.
    """
    stem = state.get("stem.0.weight", state.get("stem.proj.weight"))
    blocks, widths = set(), {}
    for key, value in state.items():
        if match := re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)", key):
            blocks.add((int(match[1]), int(match[2])))
            if match[3] == "norm1.weight":
                widths[int(match[1])] = value.numel()
    stages = {stage for stage, _ in blocks}
    depths = tuple(sum(at == stage for at, _ in blocks) for stage in sorted(stages))
    name = variant_like(depths, widths) if stages == set(range(len(stages))) else None
    if not blocks or name is None:
        return None
    return {
        "task": TASK,
        "architecture": name,
        "num_classes": class_count(state.get("head.fc.weight"), state.get("head.fc.bias")),
        "model_args": {"in_chans": image_channels(stem), **_auxiliary(state)},
        "pretrained_cfg": _transforms(name, state),
    }


def _auxiliary(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of the auxiliary head, which both layouts name alike."""
    weight = state.get("aux_head.weight")
    return {
        "token_labels": any(key.startswith("aux_head.") for key in state),
        "aux_width": weight.shape[1] if weight is not None and weight.ndim == 2 else None,
    }


def _transforms(name: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    cfgs = default_cfgs[name].cfgs
    starred = "aux_head.weight" in state and STARRED_TAG in cfgs
    tag = STARRED_TAG if starred else next(iter(cfgs))
    return cfgs[tag].to_dict()


def default_recipe(model: RMT) -> dict[str, Any]:
    """Return a recipe to evaluate a model that brings none: the transforms of its weights."""
    cfg = model.pretrained_cfg
    keys = ("crop_pct", "interpolation", "mean", "std")
    data = {key: cfg[key] for key in keys if key in cfg}
    if "input_size" in cfg:
        data["input_size"] = cfg["input_size"][-1]
    return {"task": TASK, "model": {"name": model.variant.name}, "data": data}
