"""Object detection and instance segmentation: three heads on RMT or any body with four maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rmt.detection.detector import Detector, DetectorOptions
from rmt.detection.rcnn import CascadeMaskRCNN, MaskRCNN
from rmt.detection.recipe import DetectionRecipe
from rmt.detection.retinanet import RetinaNet
from rmt.messages import did_you_mean
from rmt.weights.release import DETECTION, variant_of_release

if TYPE_CHECKING:
    from lightning import LightningDataModule

    from rmt.training.module import Engine

TASK = Detector.task
#: Name in ``create_detector`` -> class.
HEADS: dict[str, type[RetinaNet | MaskRCNN | CascadeMaskRCNN]] = {
    kind.architecture: kind for kind in (RetinaNet, MaskRCNN, CascadeMaskRCNN)
}
#: The release's names of a detector's tensors, and ours.
RULES = DETECTION
RECIPE = DetectionRecipe
# A key that only this head has; its length tells the number of classes.
_SENTINELS = {
    "retinanet": "bbox_head.retina_cls.weight",
    "mask_rcnn": "roi_head.mask_head.conv_logits.weight",
    "cascade_mask_rcnn": "roi_head.mask_head.0.conv_logits.weight",
}
_RETINA_ANCHORS = 9


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
        max_size: largest length of the long side; the short side is made shorter for it.
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
    if head not in HEADS:
        raise ValueError(f"unknown detection head {head!r}{did_you_mean(head, HEADS)}")
    options = DetectorOptions(
        backbone=backbone,
        num_classes=num_classes,
        min_size=min_size,
        max_size=max_size,
        drop_path_rate=drop_path_rate,
        backbone_options=backbone_options or {},
        roi_samples_per_image=roi_samples_per_image,
    )
    return HEADS[head](options)


def from_config(config: Mapping[str, Any]) -> Detector:
    """Build the detector that a saved ``config`` describes, randomly initialised.

    Raises:
        ValueError: if this version does not know its architecture.
    """
    head = config["architecture"]
    if head not in HEADS:
        raise ValueError(f"unknown detection head {head!r}{did_you_mean(head, HEADS)}")
    return HEADS[head].from_config(dict(config))


def config_of_release(
    state: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Return what a release file is, or None if it holds no detector.

    Args:
        state: the file's ``state_dict``.
        meta: the file's ``meta``; ``CLASSES`` gives the labels their names.

    Raises:
        ValueError: if its body is none of RMT's, or its class names are not one a class.
    """
    found = [head for head, sentinel in _SENTINELS.items() if sentinel in state]
    if not found:
        return None
    head = found[0]
    outputs = len(state[_SENTINELS[head]])
    config: dict[str, Any] = {
        "task": TASK,
        "architecture": head,
        "num_classes": outputs // _RETINA_ANCHORS if head == "retinanet" else outputs,
        "model_args": {"backbone": variant_of_release(state)},
    }
    names = meta.get("CLASSES")
    if names:
        if len(names) != config["num_classes"]:
            raise ValueError(
                f"meta['CLASSES'] has {len(names)} names for {config['num_classes']} classes"
            )
        config["label_names"] = [str(name) for name in names]
    return config


def default_recipe(model: Detector) -> dict[str, Any]:
    """Return a recipe to judge a model that brings none: the release's test on COCO."""
    args = model.config["model_args"]
    kept = {key: args[key] for key in ("backbone", "min_size", "max_size")}
    return {"task": TASK, "model": {"head": model.architecture} | kept}


def make(
    recipe: DetectionRecipe, *, model: Detector | None = None
) -> tuple[Engine, LightningDataModule]:
    """Return the trainer's two halves for a recipe; ``model`` None makes a fresh one."""
    # Imported here: loading weights needs neither data nor Lightning.
    from rmt.detection.datamodule import DetectionData
    from rmt.detection.task import DetectionTask

    data = DetectionData(recipe)
    return DetectionTask(recipe, data.splits, model=model), data
