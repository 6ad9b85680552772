"""The segmenter that a recipe describes."""

from __future__ import annotations

from collections.abc import Sequence

from rmt.segmentation.recipe import SegmentationRecipe
from rmt.segmentation.segmenter import Segmenter, create_segmenter


def new_model(recipe: SegmentationRecipe, classes: Sequence[str]) -> Segmenter:
    """Return the recipe's segmenter for these classes, randomly initialised.

    Raises:
        ValueError: for an unknown head or backbone.
    """
    wanted = recipe.model
    model = create_segmenter(
        wanted.head,
        wanted.backbone,
        len(classes),
        channels=wanted.channels,
        drop_path_rate=wanted.drop_path_rate,
    )
    model.info["label_names"] = list(classes)
    model.info["pretrained_cfg"] = {"mean": recipe.data.mean, "std": recipe.data.std}
    return model
