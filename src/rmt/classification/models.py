"""The network that a classification recipe describes."""

from __future__ import annotations

from collections.abc import Sequence

from rmt.classification.recipe import ClassificationRecipe
from rmt.modeling.registry import create_model
from rmt.modeling.rmt import RMT


def new_model(recipe: ClassificationRecipe, classes: Sequence[str]) -> RMT:
    """Return the recipe's network for these classes, randomly initialised.

    Raises:
        ValueError: if the recipe names another number of classes, or an unknown model.
    """
    wanted = recipe.model
    model = create_model(
        wanted.name,
        len(classes),
        drop_path_rate=wanted.drop_path_rate,
        drop_rate=wanted.drop_rate,
        token_labels=wanted.token_labels,
    )
    model.info["label_names"] = list(classes)
    model.pretrained_cfg |= transforms_of(recipe)
    return model


def transforms_of(recipe: ClassificationRecipe) -> dict[str, object]:
    """Return timm's description of the transforms that the weights are trained with."""
    data = recipe.data
    return {
        "input_size": (3, data.input_size, data.input_size),
        "crop_pct": data.crop_pct,
        "interpolation": "bicubic" if data.interpolation == "random" else data.interpolation,
        "mean": tuple(data.mean),
        "std": tuple(data.std),
        "license": "other",
    }
