"""Semantic segmentation: heads, data, and what a release file of a segmenter looks like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from rmt.modeling.registry import IMAGENET_MEAN, IMAGENET_STD
from rmt.segmentation.models import new_model as new_model
from rmt.segmentation.segmenter import Segmenter, create_segmenter
from rmt.weights.release import SEGMENTATION, image_channels, variant_of_release

__all__ = [
    "RULES",
    "TASK",
    "Segmenter",
    "config_of_release",
    "create_segmenter",
    "default_recipe",
    "new_model",
]

TASK = Segmenter.task
RULES = SEGMENTATION

# A key that only this head has.
_SENTINELS = {
    "semantic_fpn": "decode_head.scale_heads.0.0.conv.weight",
    "upernet": "decode_head.bottleneck.conv.weight",
}


def config_of_release(
    state: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return the configuration of a release segmenter, or None if ``state`` is no segmenter.

    Args:
        state: the file's tensors under its own names.
        meta: what the file says of itself; class names and palette are taken over if present.

    Raises:
        ValueError: for a head that is neither Semantic FPN nor UperNet, or no RMT backbone, or
            class names or colours that are not one a class.
    """
    classifier = state.get("decode_head.conv_seg.weight")
    if classifier is None:
        return None
    found = [head for head, key in _SENTINELS.items() if key in state]
    if not found:
        known = ", ".join(_SENTINELS)
        raise ValueError(f"the file's decode_head is none of the known ones ({known})")
    num_classes, width = classifier.shape[:2]
    return {
        "task": TASK,
        "architecture": found[0],
        "num_classes": num_classes,
        "model_args": {
            "backbone": variant_of_release(state),
            "in_chans": image_channels(state.get("backbone.patch_embed.proj.0.weight")),
            "channels": width,
        },
        "pretrained_cfg": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        **_names_and_colours(meta, num_classes),
    }


def default_recipe(model: Segmenter) -> dict[str, Any]:
    """Return a recipe to evaluate a model that brings none: the release's test, its transforms."""
    mean, std = model.channel_statistics
    wanted = {"head": model.architecture, "backbone": model.config["model_args"]["backbone"]}
    return {"task": TASK, "model": wanted, "data": {"mean": list(mean), "std": list(std)}}


def _names_and_colours(meta: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """Return ``label_names`` and ``palette`` (RGB, 0..255) as far as the file has them."""
    out: dict[str, Any] = {}
    for key, ours in (("CLASSES", "label_names"), ("PALETTE", "palette")):
        values: Sequence[Any] | None = meta.get(key)
        if values is None:
            continue
        if len(values) != num_classes:
            raise ValueError(
                f"meta[{key!r}] has {len(values)} entries for {num_classes} classes of decode_head"
            )
        out[ours] = [str(value) if ours == "label_names" else _colour(value) for value in values]
    return out


def _colour(value: Any) -> list[int]:
    try:
        red, green, blue = map(int, value)
        return list(bytes([red, green, blue]))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"meta['PALETTE'] holds {value!r} where red, green and blue, 0 to 255, are expected"
        ) from error
