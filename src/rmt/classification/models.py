"""The network that a classification recipe or a file describes: an RMT, or a model of timm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm

from rmt.classification.exported import ExportedClassifier
from rmt.classification.recipe import ClassificationRecipe
from rmt.classification.timm_model import TimmClassifier, takes_one_size
from rmt.modeling.registry import create_model
from rmt.modeling.rmt import RMT
from rmt.variants import VARIANTS

Classifier = RMT | TimmClassifier | ExportedClassifier


def new_model(recipe: ClassificationRecipe, classes: Sequence[str]) -> Classifier:
    """Return the recipe's network for these classes, randomly initialised.

    Raises:
        ValueError: for an unknown model, or an option that it does not have.
    """
    wanted = recipe.model
    model: Classifier
    if _is_ours(wanted.name):
        model = create_model(
            wanted.name,
            len(classes),
            drop_path_rate=wanted.drop_path_rate,
            drop_rate=wanted.drop_rate,
            token_labels=wanted.token_labels,
        )
    else:
        model = _of_timm(recipe, len(classes))
    model.info["label_names"] = list(classes)
    if recipe.data.multi_label:
        model.info["multi_label"] = True
    model.pretrained_cfg |= transforms_of(recipe)
    return model


def from_config(config: dict[str, Any]) -> Classifier:
    """Build the classifier that a saved ``config`` describes, randomly initialised.

    Raises:
        ValueError: if neither this package nor timm knows its architecture.
    """
    name = config["architecture"]
    kind = TimmClassifier if timm.is_model(name) and not _is_ours(name) else RMT
    return kind.from_config(config)


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in VARIANTS


def _of_timm(recipe: ClassificationRecipe, num_classes: int) -> TimmClassifier:
    wanted = recipe.model
    if wanted.token_labels:
        raise ValueError(
            f"model.token_labels is true, but model.name is {wanted.name!r}: only an RMT has the "
            "auxiliary head of token labelling"
        )
    return TimmClassifier(
        wanted.name,
        num_classes,
        drop_rate=wanted.drop_rate,
        drop_path_rate=wanted.drop_path_rate,
        img_size=recipe.data.side if takes_one_size(wanted.name) else None,
    )


def transforms_of(recipe: ClassificationRecipe) -> dict[str, object]:
    """Return timm's description of the transforms that the weights are trained with."""
    data = recipe.data
    return {
        "input_size": (3, data.side, data.side),
        "crop_pct": data.crop_pct,
        "interpolation": "bicubic" if data.interpolation == "random" else data.interpolation,
        "mean": tuple(data.mean),
        "std": tuple(data.std),
        "license": "other",
    }
