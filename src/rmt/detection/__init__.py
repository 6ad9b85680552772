"""Object detection and instance segmentation: three heads on RMT or any other backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rmt.detection.detector import Detector, DetectorOptions
from rmt.detection.rcnn import CascadeMaskRCNN, MaskRCNN
from rmt.detection.recipe import DetectionRecipe
from rmt.detection.retinanet import RetinaNet
from rmt.messages import did_you_mean

TASK = Detector.task
#: Name in ``create_detector`` -> class.
HEADS: dict[str, type[Detector]] = {
    kind.architecture: kind for kind in (RetinaNet, MaskRCNN, CascadeMaskRCNN)
}


def create_detector(
    head: str,
    backbone: str = "rmt_s",
    *,
    num_classes: int = 80,
    min_size: int = 800,
    max_size: int = 1333,
    drop_path_rate: float | None = None,
    backbone_options: Mapping[str, Any] | None = None,
    roi_samples_per_image: int = 512,
) -> Detector:
    """Create an object detector, randomly initialised.

    Args:
        head: ``"retinanet"`` (arXiv 1708.02002), ``"mask_rcnn"`` (arXiv 1703.06870) or
            ``"cascade_mask_rcnn"`` (arXiv 1712.00726).
        backbone: an RMT variant, or any timm model with maps of stride 4, 8, 16 and 32.
        num_classes: K, without background; labels are 0 to K - 1.
        min_size: length of the short side of resized images, in pixels.
        max_size: largest length of the long side; the short side gets smaller if necessary.
        drop_path_rate: stochastic depth of the backbone; None takes its own.
        backbone_options: further arguments of the backbone's factory.
        roi_samples_per_image: RoIs per image that the box and mask heads are trained on, at most a
            quarter of them with objects. RetinaNet does not sample. Not written to files.

    Returns:
        A module: ``d(images)`` gives a list of dicts with ``boxes``, ``scores``, ``labels`` and for
        the mask heads ``masks``; ``d(images, targets)`` a dict of losses.

    Raises:
        ValueError: for an unknown head or backbone (the nearest is named), or an impossible number.
    """
    kind = _head(head)
    options = DetectorOptions(
        backbone=backbone,
        num_classes=num_classes,
        min_size=min_size,
        max_size=max_size,
        drop_path_rate=drop_path_rate,
        backbone_options=backbone_options or {},
        roi_samples_per_image=roi_samples_per_image,
    )
    return kind(options)


def from_config(config: dict[str, Any]) -> Detector:
    """Build the detector that a saved ``config`` describes, randomly initialised.

    Raises:
        ValueError: if this version does not know its architecture.
    """
    return _head(config["architecture"]).from_config(dict(config))


def _head(name: str) -> type[Detector]:
    if name not in HEADS:
        raise ValueError(f"unknown detection head {name!r}{did_you_mean(name, HEADS)}")
    return HEADS[name]


def default_recipe(model: Detector) -> dict[str, Any]:
    """Return a recipe to evaluate a model that has none: the release's evaluation on COCO."""
    args = model.config["model_args"]
    kept = {key: args[key] for key in ("backbone", "min_size", "max_size")}
    return {"task": TASK, "model": {"head": model.architecture} | kept}


def new_model(recipe: DetectionRecipe, classes: Sequence[str]) -> Detector:
    """Return the recipe's detector for these classes, randomly initialised.

    Raises:
        ValueError: for an unknown head or backbone.
    """
    wanted = recipe.model
    model = create_detector(
        wanted.head,
        wanted.backbone,
        num_classes=len(classes),
        min_size=wanted.min_size,
        max_size=wanted.max_size,
        drop_path_rate=wanted.drop_path_rate,
        roi_samples_per_image=wanted.roi_samples_per_image,
    )
    model.info["label_names"] = list(classes)
    return model
