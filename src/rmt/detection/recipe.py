"""The keys of a detection recipe with their defaults; no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from rmt.recipes.schema import DataConfig, ModelConfig, Recipe, Section, number


@dataclass(kw_only=True, frozen=True)
class Model(ModelConfig):
    """The network.

    Attributes:
        head: ``retinanet``, ``mask_rcnn`` or ``cascade_mask_rcnn``.
        backbone: a registered variant, or a timm model with maps of stride 4, 8, 16 and 32.
            ``auto`` takes that of ``checkpoint`` or, without one, ``rmt_t`` on a GPU and
            ``rmt_nano`` on a CPU; the run stores the name.
        min_size: short side of resized images, in pixels.
        max_size: largest long side; the short side gets smaller if necessary.
        roi_samples_per_image: proposals per image that the box and mask heads are trained on, at
            most a quarter of them positive; fewer are faster.
    """

    head: str = "retinanet"
    backbone: str = "rmt_s"
    min_size: int = number(800, 1, 16384)
    max_size: int = number(1333, 1, 16384)
    roi_samples_per_image: int = number(512, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_size < self.min_size:
            raise ValueError(
                f"model.min_size is {self.min_size} and model.max_size is {self.max_size}; "
                "max_size must be at least min_size"
            )

    def size_of(self, short: int) -> tuple[int, int]:
        """Return the size (h, w) of a landscape image with this short side.

        Its aspect ratio is that of the paper's 800 × 1280, within ``max_size``.
        """
        return short, max(short, min(self.max_size, round(1.6 * short)))


@dataclass(kw_only=True, frozen=True)
class Data(DataConfig):
    """Where images and boxes are, and which of them are used.

    Attributes:
        keep_empty: also train on images without objects; null does so for the YOLO format, where
            they are background, but not for others, as the release trains on COCO.
        aspect_ratio_grouping: batches hold only landscape or only portrait images, which saves
            padding.
    """

    batch_size: int | Literal["auto"] = number(2, 1)
    keep_empty: bool | None = None
    aspect_ratio_grouping: bool = True


@dataclass(kw_only=True, frozen=True)
class Augment(Section):
    """How training images are augmented; the defaults are the release's 1x schedule.

    Attributes:
        flip: probability of a horizontal flip.
        flip_vertical: probability of a vertical flip.
        min_sizes: short sides to draw from (long side within ``model.max_size``); empty for
            ``model.min_size`` only.
        crop: probability of resizing to one of ``crop_min_sizes`` and cropping before that.
        crop_min_sizes: short sides to draw from before the crop; empty keeps the image's size.
        crop_size: smallest and largest side of the crop; height and width are drawn separately.
        brightness: strength of random brightness and contrast; 0 for none.
    """

    key: ClassVar[str] = "augment"

    flip: float = number(0.5, 0, 1)
    flip_vertical: float = number(0.0, 0, 1)
    min_sizes: tuple[int, ...] = number((), 1, 16384)
    crop: float = number(0.0, 0, 1)
    crop_min_sizes: tuple[int, ...] = number((400, 500, 600), 1, 16384)
    crop_size: tuple[int, int] = number((384, 600), 1, 16384)
    brightness: float = number(0.0, 0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_order("crop_size")


@dataclass(kw_only=True, frozen=True)
class DetectionRecipe(Recipe):
    """A detection run."""

    task: str = "detection"
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
