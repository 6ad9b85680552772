"""The keys of a segmentation recipe with their defaults; no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from rmt.recipes.schema import DataConfig, ModelConfig, Recipe, Section, number


@dataclass(kw_only=True, frozen=True)
class Model(ModelConfig):
    """The network.

    Attributes:
        head: ``semantic_fpn`` or ``upernet``.
        backbone: a registered variant, or a timm model with maps of stride 4, 8, 16 and 32.
            ``auto`` takes that of ``checkpoint`` or, without one, ``rmt_t`` on a GPU and
            ``rmt_nano`` on a CPU; the run stores the name.
        channels: number of channels of the head; null takes the published one.
    """

    head: str = "semantic_fpn"
    backbone: str = "rmt_s"
    channels: int | None = number(None, 2, 4096)


@dataclass(kw_only=True, frozen=True)
class Data(DataConfig):
    """Where images and masks are, and how they are cropped and normalised.

    Attributes:
        reduce_zero_label: for data with ``classes.txt``: mask value 0 is ignored and 1 is the first
            class, as in ADE20K.
        ignore_index: a mask value that is ignored, in addition to 255.
        crop: side of the square training crop in pixels.
        mean: per channel, of images scaled to 0..1.
        std: likewise.
    """

    batch_size: int | Literal["auto"] = number(16, 1)
    reduce_zero_label: bool = False
    ignore_index: int = number(255, 0, 65535)
    crop: int = number(512, 1, 16384)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = number((0.229, 0.224, 0.225), 0, above=True)


@dataclass(kw_only=True, frozen=True)
class Augment(Section):
    """How a training image and its mask are augmented; the defaults are the release's.

    Attributes:
        scale: smallest and largest factor on the size of evaluation (``inference.min_size``,
            ``inference.max_size``).
        cat_max_ratio: largest fraction of a crop that one class may fill; ten tries are made.
        flip: probability of a horizontal flip.
        flip_vertical: probability of a vertical flip.
        photometric: change brightness, contrast, saturation and hue, each with probability ½.
    """

    key: ClassVar[str] = "augment"

    scale: tuple[float, float] = number((0.5, 2.0), 0, 100, above=True)
    cat_max_ratio: float = number(0.75, 0, 1, above=True)
    flip: float = number(0.5, 0, 1)
    flip_vertical: float = number(0.0, 0, 1)
    photometric: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_order("scale")


@dataclass(kw_only=True, frozen=True)
class Inference(Section):
    """How an image is segmented; the defaults are the release's evaluation on ADE20K.

    Attributes:
        min_size: short side after resizing, in pixels; 0 keeps the image's size.
        max_size: largest long side; the short side gets smaller if necessary.
        window: side of overlapping square windows whose logits are averaged; 0 for the whole
            image at once; null, in a recipe, for ``data.crop``.
        stride: pixels from one window to the next; 0 takes two thirds of the window.
        pad: pad images smaller than the window with the mean colour, at the bottom and on the
            right, as in training; otherwise a smaller image is one window of its own size.
        scales: factors on the size; probabilities are averaged over them.
        flip: also average with the mirrored image.
    """

    key: ClassVar[str] = "inference"

    min_size: int = number(512, 0, 16384)
    max_size: int = number(2048, 1, 65536)
    window: int | None = number(0, 0, 16384)
    stride: int = number(0, 0)
    pad: bool = False
    scales: tuple[float, ...] = number((1.0,), 0, 100, above=True)
    flip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window is not None and self.stride > self.window:
            raise ValueError(
                f"inference.stride is {self.stride} and inference.window is {self.window}: a "
                "stride larger than the window leaves out pixels; 0 takes two thirds of the window"
            )
        if not self.scales:
            raise ValueError("inference.scales is empty; give at least one factor, such as 1.0")
        if self.min_size and self.max_size < self.min_size:
            raise ValueError(
                f"inference.min_size is {self.min_size} and inference.max_size is "
                f"{self.max_size}; max_size must be at least min_size"
            )

    @property
    def step(self) -> int:
        """Pixels from one window to the next."""
        return self.stride or max(1, 2 * (self.window or 0) // 3)


@dataclass(kw_only=True, frozen=True)
class SegmentationRecipe(Recipe):
    """A segmentation run."""

    task: str = "segmentation"
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    inference: Inference = field(default_factory=Inference)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inference.window is None:
            resolved = replace(self.inference, window=self.data.crop)
            object.__setattr__(self, "inference", resolved)
