"""The keys of a classification recipe with their defaults; no torch here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

from rmt.recipes.schema import AUTO, DataConfig, ModelConfig, Recipe, Section, number

#: ``data.input_size auto``: of networks with weights of small images (docs/train.md), of others.
SIZES, SIZE = {"rmt_nano": 128}, 224


@dataclass(kw_only=True, frozen=True)
class Model(ModelConfig):
    """The network.

    Attributes:
        name: an RMT variant, or any model of timm (``resnet18``). ``auto`` takes that of
            ``checkpoint`` or, without one, ``rmt_t`` on a GPU and ``rmt_nano`` on a CPU; the run
            stores the name.
        drop_rate: dropout before the classifier.
        token_labels: add the auxiliary head of token labelling (the starred models).
    """

    network: ClassVar[str] = "name"

    name: str = "rmt_s"
    drop_rate: float = number(0.0, 0, 1, below=True)
    token_labels: bool = False


@dataclass(kw_only=True, frozen=True)
class Data(DataConfig):
    """Where the images are, how they are split, and how they are resized and normalised.

    Attributes:
        root: folder, CSV, tar or Parquet file, or the folder of Fashion-MNIST's IDX files.
        multi_label: images have any number of labels: null where a CSV file has a column
            ``labels``, true also where its column ``label`` holds several. The run stores it.
        download: let torchvision download Fashion-MNIST into ``root``.
        input_size: side of the square input in pixels. ``auto`` takes what suits the network: 128
            for ``rmt_nano``, 224 for others; the run stores the number.
        crop_pct: in evaluation, side of the centre crop over the short side of the resized image.
        interpolation: ``bilinear``, ``bicubic`` or, in training only, ``random``.
        mean: per channel, of images scaled to 0..1.
        std: likewise.
        balance: for classes of unequal size: ``loss`` weights the loss of an image by the inverse
            frequency of its class (of several labels, the loss of each class where an image has it
            by the number of images without it over those with it), ``sampling`` draws images so
            that all classes come equally often (with replacement; an epoch keeps its length),
            ``none`` does neither.
        repeats: repeated augmentation (arXiv 1901.09335): each image is shown this many times,
            spread over the devices; the length of an epoch does not change.
    """

    multi_label: bool | None = None
    download: bool = False
    batch_size: int | Literal["auto"] = number(64, 1)
    balance: Literal["none", "loss", "sampling"] = "none"
    input_size: int | Literal["auto"] = number(224, 1, 16384)
    crop_pct: float = number(0.875, 0.01, 1)
    interpolation: Literal["bilinear", "bicubic", "random"] = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = number((0.229, 0.224, 0.225), 0, above=True)

    @property
    def side(self) -> int:
        """``input_size``; raises as :meth:`chosen_number`."""
        return self.chosen_number("input_size")


@dataclass(kw_only=True, frozen=True)
class Augment(Section):
    """How training images are augmented, by timm's operations.

    Attributes:
        crop: ``random`` (timm's random resized crop, with ``scale`` and ``ratio``), ``shift`` (pad
            by an eighth of the side and crop to the size, for small images) or ``none``.
        scale: smallest and largest area of the random crop, as fractions of the image's.
        ratio: smallest and largest aspect ratio (width / height) of the random crop.
        flip: probability of a horizontal flip.
        rand_augment: timm's RandAugment string; empty for none.
        color_jitter: strength of colour jitter, used if ``rand_augment`` is empty.
        erasing: probability of random erasing.
        mixup: alpha of Mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none.
        mixup_switch_prob: probability of CutMix instead of Mixup if both are on.
        label_smoothing: fraction of the target that is spread over all classes.
    """

    key: ClassVar[str] = "augment"

    crop: Literal["random", "shift", "none"] = "random"
    scale: tuple[float, float] = number((0.08, 1.0), 0, 1, above=True)
    ratio: tuple[float, float] = number((0.75, 1.3333333333333333), 0, above=True)
    flip: float = number(0.5, 0, 1)
    rand_augment: str = ""
    color_jitter: float = number(0.0, 0, 1)
    erasing: float = number(0.0, 0, 1)
    mixup: float = number(0.0, 0)
    cutmix: float = number(0.0, 0)
    mixup_switch_prob: float = number(0.5, 0, 1)
    label_smoothing: float = number(0.1, 0, 1, below=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_order("scale")
        self.check_order("ratio")


@dataclass(kw_only=True, frozen=True)
class TokenLabels(Section):
    """Token labelling (arXiv 2104.10858) for a model with ``model.token_labels``.

    Attributes:
        root: folder of label maps ``CLASS/IMAGE.pt``, named as the images. Each is a tensor
            (2, k, h, w) of a teacher's k best logits and their classes over the whole image.
        teacher: a timm model that labels each augmented batch, instead of ``root``.
        weights: the teacher's state dict (``.pth`` or ``.safetensors``); empty takes timm's own
            weights, which are downloaded.
        weight: of the token loss; that of the class loss is 1.
        class_target: target of the class logits: the image's ``label``, or its label ``map``
            averaged over the crop.
        mix: alpha of MixToken; 0 for none.
    """

    key: ClassVar[str] = "token_labels"

    root: str = ""
    teacher: str = ""
    weights: str = ""
    weight: float = number(0.5, 0)
    class_target: Literal["label", "map"] = "label"
    mix: float = number(1.0, 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.root and self.teacher:
            raise ValueError(
                "token_labels.root and token_labels.teacher are both set; set only one"
            )


@dataclass(kw_only=True, frozen=True)
class ClassificationRecipe(Recipe):
    """A classification run.

    Raises:
        ValueError: for Mixup or CutMix with a batch size of 1, or a weighted loss or several labels
            with token labels.
    """

    task: str = "classification"
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    token_labels: TokenLabels = field(default_factory=TokenLabels)

    def with_network(self, name: str, start: str | None) -> Self:
        """Return this recipe with its network, its start, and the size that suits the network."""
        recipe = super().with_network(name, start)
        if self.data.input_size != AUTO:
            return recipe
        side = SIZES.get(name.partition(".")[0], SIZE)
        return replace(recipe, data=replace(recipe.data, input_size=side))

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.augment.mixup or self.augment.cutmix) and self.data.batch_size == 1:
            raise ValueError(
                f"data.batch_size is {self.data.batch_size}, but Mixup and CutMix mix pairs of "
                "images; use at least 2, or set augment.mixup and augment.cutmix to 0"
            )
        if self.data.multi_label and (
            self.model.token_labels or self.token_labels.root or self.token_labels.teacher
        ):
            raise ValueError(
                "the images have several labels each (data.multi_label), and token labelling is "
                "for one label each: set model.token_labels to false, and token_labels.root and "
                "token_labels.teacher to nothing"
            )
        if self.data.balance == "loss" and self.model.token_labels:
            raise ValueError(
                "data.balance is 'loss' and model.token_labels is true: the losses of tokens are "
                "not weighted by class; use data.balance sampling"
            )
