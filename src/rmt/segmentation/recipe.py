"""What a segmentation recipe may say, with its defaults; no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from rmt.recipes.schema import Recipe, at_least


@dataclass(kw_only=True)
class Model:
    """The network.

    Attributes:
        head: ``semantic_fpn`` or ``upernet``.
        backbone: a registered variant, or a timm model with maps of stride 4, 8, 16 and 32.
        checkpoint: start from these weights (anything ``rmt.load`` reads): a classifier's for the
            backbone, or a segmenter's for everything that fits.
        channels: width of the head; null takes the published one.
        drop_path_rate: stochastic depth; null takes the variant's.
        freeze: names of parts, such as ``backbone.body.stem``, that stay as they are.
    """

    head: str = "semantic_fpn"
    backbone: str = "rmt_s"
    checkpoint: str | None = None
    channels: int | None = None
    drop_path_rate: float | None = None
    freeze: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Data:
    """Where images and masks are, and how they are shown.

    Attributes:
        format: ``ade20k``, ``cityscapes``, ``voc`` (their published layouts), ``folder``
            (``images/``, ``masks/`` and ``classes.txt``), or ``auto`` to look at ``root``.
        root: folder of the data set.
        reduce_zero_label: in the ``folder`` layout, mask value 0 is ignored and 1 is the first
            class, as in ADE20K.
        val_fraction: share of the training images held out where the data brings no split.
        crop: side of the square shown to the network in training, in pixels.
        mean: per channel, of images scaled to 0..1.
        std: likewise.
        batch_size: images a device and a step.
        num_workers: loading processes a device; -1 takes the spare cores.
        repeats: show each training image so many times in one pass, cut and varied anew; for few
            images that are larger than the crop.
        max_bad_samples: unreadable training images tolerated in a pass; each is named in the log.
    """

    format: Literal["auto", "ade20k", "cityscapes", "voc", "folder"] = "auto"
    root: str = ""
    reduce_zero_label: bool = False
    val_fraction: float = 0.1
    crop: int = 512
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    batch_size: int = 16
    num_workers: int = -1
    repeats: int = 1
    max_bad_samples: int = 100

    def __post_init__(self) -> None:
        at_least(
            1, data__batch_size=self.batch_size, data__crop=self.crop, data__repeats=self.repeats
        )


@dataclass(kw_only=True)
class Augment:
    """How a training image and its mask are varied; the defaults are the release's.

    Attributes:
        scale: smallest and largest factor on the test size (``inference.min_size``, ``inference.max_size``).
        cat_max_ratio: share of a crop that one class may fill; ten tries are made.
        flip: probability of a mirror image.
        flip_vertical: probability of turning it upside down.
        photometric: vary brightness, contrast, saturation and hue, each with probability ½.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    flip: float = 0.5
    flip_vertical: float = 0.0
    photometric: bool = True


@dataclass(kw_only=True, frozen=True)
class Inference:
    """How a whole image is segmented; the defaults are the release's test on ADE20K.

    Attributes:
        min_size: pixels of the shorter side after resizing; 0 keeps the image's size.
        max_size: upper bound of the longer side.
        window: side of square windows, overlapping, whose logits are averaged; 0 for the whole
            image at once; null, in a recipe, for ``data.crop``.
        stride: pixels from one window to the next; 0 takes two thirds of the window.
        pad: fill images smaller than the window with mean colour, below and on the right, as
            training fills its crops; else a smaller image is one window of its own size.
        scales: factors on the test size; probabilities are averaged over them.
        flip: average with the mirrored image too.
    """

    min_size: int = 512
    max_size: int = 2048
    window: int | None = 0
    stride: int = 0
    pad: bool = False
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.window is not None and not 0 <= self.stride <= self.window:
            raise ValueError(
                f"stride {self.stride} with window {self.window}: it must be 1 to the window's "
                "side, else pixels are left out, or 0 for two thirds of it"
            )
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales {self.scales}: give at least one positive factor")
        if self.min_size < 0 or (self.min_size and self.max_size < self.min_size):
            raise ValueError(
                f"min_size {self.min_size}, max_size {self.max_size}: expected 0 <= min_size <= max_size"
            )

    @property
    def step(self) -> int:
        """Pixels from one window to the next."""
        return self.stride or max(1, 2 * (self.window or 0) // 3)


@dataclass(kw_only=True)
class SegmentationRecipe(Recipe):
    """A whole segmentation run."""

    task: str = "segmentation"
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    inference: Inference = field(default_factory=Inference)

    def __post_init__(self) -> None:
        if self.inference.window is None:
            self.inference = replace(self.inference, window=self.data.crop)
