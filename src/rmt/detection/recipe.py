"""What a detection recipe may say, with its defaults; no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rmt.recipes.schema import Recipe, at_least


@dataclass(kw_only=True)
class Model:
    """The network.

    Attributes:
        head: ``retinanet``, ``mask_rcnn`` or ``cascade_mask_rcnn``.
        backbone: a registered variant, or a timm model with maps of stride 4, 8, 16 and 32.
        checkpoint: start from these weights (anything ``rmt.load`` reads): a classifier's for the
            backbone, or a detector's for everything that fits.
        num_classes: for ``--dry-run`` without the data; null takes the data's.
        min_size: short side of resized images,
        max_size: or less, so that the long side stays within this.
        roi_samples_per_image: proposals of an image that the box and mask heads learn from, a quarter of them
            with objects; fewer are quicker.
        drop_path_rate: stochastic depth; null takes the variant's.
        freeze: names of parts, such as ``backbone.body.stem``, that stay as they are.
    """

    head: str = "retinanet"
    backbone: str = "rmt_s"
    checkpoint: str | None = None
    num_classes: int | None = None
    min_size: int = 800
    max_size: int = 1333
    roi_samples_per_image: int = 512
    drop_path_rate: float | None = None
    freeze: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Data:
    """Where images and boxes are, and which of them are shown.

    Attributes:
        format: ``coco`` (JSON), ``voc`` (one XML an image), ``yolo`` (one TXT an image), or
            ``auto`` to look at ``root``.
        root: folder of the data set.
        val_fraction: share of the training images held out where the data brings no split.
        keep_empty: also train on images without objects.
        aspect_ratio_grouping: put only upright or only lying images into a batch, to save padding.
        batch_size: images a device and a step.
        num_workers: loading processes a device; -1 takes the spare cores.
        repeats: show each training image so many times in one pass, varied anew.
        max_bad_samples: unreadable training images tolerated in a pass; each is named in the log.
    """

    format: Literal["auto", "coco", "voc", "yolo"] = "auto"
    root: str = ""
    val_fraction: float = 0.1
    keep_empty: bool = False
    aspect_ratio_grouping: bool = True
    batch_size: int = 2
    num_workers: int = -1
    repeats: int = 1
    max_bad_samples: int = 100

    def __post_init__(self) -> None:
        at_least(1, data__batch_size=self.batch_size, data__repeats=self.repeats)


@dataclass(kw_only=True)
class Augment:
    """How a training image is varied; the defaults are the release's 1x schedule.

    Attributes:
        flip: probability of a mirror image.
        flip_vertical: probability of turning it upside down.
        min_sizes: short sides to choose from (long side within ``model.max_size``); empty for
            ``model.min_size`` alone.
        crop: probability of resizing to one of ``crop_min_sizes`` and cutting out a part first.
        crop_min_sizes: short sides to choose from before the cut; empty keeps the image's size.
        crop_size: smallest and largest side of the part, drawn for each side.
        brightness: strength of random brightness and contrast; 0 for none.
    """

    flip: float = 0.5
    flip_vertical: float = 0.0
    min_sizes: tuple[int, ...] = ()
    crop: float = 0.0
    crop_min_sizes: tuple[int, ...] = (400, 500, 600)
    crop_size: tuple[int, int] = (384, 600)
    brightness: float = 0.0

    def __post_init__(self) -> None:
        least, most = self.crop_size
        if not 1 <= least <= most:
            raise ValueError(
                f"augment.crop_size is {least}, {most}; give the smallest side, at least 1, and "
                "then the largest"
            )


@dataclass(kw_only=True)
class DetectionRecipe(Recipe):
    """A whole detection run."""

    task: str = "detection"
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
