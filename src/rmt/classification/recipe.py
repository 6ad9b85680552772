"""What a classification recipe may say, with its defaults; no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from rmt.recipes.schema import Recipe, at_least


@dataclass(kw_only=True)
class Model:
    """The network.

    Attributes:
        name: a registered variant.
        num_classes: for ``--dry-run`` without the data; null takes the data's.
        checkpoint: start from these weights (anything ``rmt.load`` reads); what belongs
            to single classes is fresh if the classes are others.
        drop_path_rate: stochastic depth; null takes the variant's.
        drop_rate: dropout before the classifier.
        token_labels: the starred form.
        freeze: names of parts, such as ``stages.0``, that stay as they are, batch norms' statistics
            too, and work as in a test.
    """

    name: str = "rmt_s"
    num_classes: int | None = None
    checkpoint: str | None = None
    drop_path_rate: float | None = None
    drop_rate: float = 0.0
    token_labels: bool = False
    freeze: tuple[str, ...] = ()


@dataclass(kw_only=True)
class Data:
    """Where the images are, how they are split and how large they are shown.

    Attributes:
        format: ``folder`` (class folders), ``csv`` (columns path, label and maybe split), ``tar``
            (one tar file a class, or class folders in it), ``webdataset``, ``parquet`` (as Hugging
            Face writes it), ``digits``, ``fashion-mnist``, ``imagenet``, ``imagenet-real`` and
            ``imagenet-c`` (test sets as their authors ship them, for ``rmt eval``), or ``auto`` to
            look at ``root``.
        root: folder, CSV, tar or Parquet file, or the folder of Fashion-MNIST's IDX files.
        download: let torchvision fetch Fashion-MNIST into ``root``.
        val_fraction: share of the training images held out, class by class, where the data brings
            no split of its own; 1 to judge all of them.
        input_size: side of the square shown to the network, in pixels.
        crop_pct: at test, the side of the crop over the short side of the resized image.
        interpolation: ``bilinear``, ``bicubic`` or, in training only, ``random``.
        mean: per channel, of images scaled to 0..1.
        std: likewise.
        batch_size: images a device and a step.
        num_workers: loading processes a device; -1 takes the spare cores.
        repeats: show each image so many times in one pass (repeated augmentation).
        max_bad_samples: unreadable training images tolerated a device; each is named in the log.
    """

    format: Literal[
        "auto",
        "folder",
        "csv",
        "tar",
        "webdataset",
        "parquet",
        "digits",
        "fashion-mnist",
        "imagenet",
        "imagenet-real",
        "imagenet-c",
    ] = "auto"
    root: str = ""
    download: bool = False
    val_fraction: float = 0.1
    input_size: int = 224
    crop_pct: float = 0.875
    interpolation: Literal["bilinear", "bicubic", "random"] = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    batch_size: int = 64
    num_workers: int = -1
    repeats: int = 1
    max_bad_samples: int = 100

    def __post_init__(self) -> None:
        at_least(1, data__batch_size=self.batch_size, data__repeats=self.repeats)
        at_least(1, data__input_size=self.input_size)


@dataclass(kw_only=True)
class Augment:
    """How a training image is varied; timm's operations.

    Attributes:
        crop: ``random`` (a part of ``scale`` of the area, of ``ratio``), ``shift`` (pad by an
            eighth and cut back, for small images) or ``none``.
        scale: smallest and largest area of the random crop.
        ratio: smallest and largest width over height of it.
        flip: probability of a mirror image.
        rand_augment: timm's RandAugment string; empty for none.
        color_jitter: strength, used where ``rand_augment`` is empty.
        erasing: probability of random erasing.
        mixup: alpha; 0 for none.
        cutmix: alpha; 0 for none.
        mixup_switch_prob: probability of CutMix where both are on.
        label_smoothing: label smoothing.
    """

    crop: Literal["random", "shift", "none"] = "random"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333333333333333)
    flip: float = 0.5
    rand_augment: str = ""
    color_jitter: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_switch_prob: float = 0.5
    label_smoothing: float = 0.1


@dataclass(kw_only=True)
class TokenLabels:
    """Token labelling (arXiv 2104.10858) for a model with ``model.token_labels``.

    Attributes:
        root: folder of label maps, ``CLASS/IMAGE.pt`` as the images lie in theirs; each a tensor
            (2, k, h, w) of a teacher's k best logits and their classes over the whole image.
        teacher: a timm model that labels each batch as the network sees it; in place of ``root``.
        weights: the teacher's state dict (``.pth`` or ``.safetensors``); empty takes timm's own
            weights, which are downloaded.
        weight: of the tokens' loss beside the class token's.
        class_target: what the image's own logits learn: its ``label``, or the ``map`` averaged
            over the crop.
        mix: alpha of MixToken; 0 for none.
    """

    root: str = ""
    teacher: str = ""
    weights: str = ""
    weight: float = 0.5
    class_target: Literal["label", "map"] = "label"
    mix: float = 1.0


@dataclass(kw_only=True)
class ClassificationRecipe(Recipe):
    """A whole classification run."""

    task: str = "classification"
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    token_labels: TokenLabels = field(default_factory=TokenLabels)
