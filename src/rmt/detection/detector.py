"""The base class of all detectors: images to detections or to losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from rmt.detection.check import check_areas, check_images, check_targets
from rmt.detection.transform import Batch, Target, Transform
from rmt.modeling.necks import Backbone, without_download
from rmt.modeling.pretrained import Pretrained

#: Detections must score above it, as in the release.
SCORE_THRESHOLD = 0.05

Detections = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class DetectorOptions:
    """How a detector is built; see :func:`rmt.detection.create_detector` for their meaning.

    Raises:
        ValueError: for a number of classes or of RoI samples below 1.
    """

    backbone: str = "rmt_s"
    num_classes: int = 80
    min_size: int = 800
    max_size: int = 1333
    drop_path_rate: float | None = None
    backbone_options: Mapping[str, Any] = field(default_factory=dict)
    roi_samples_per_image: int = 512

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError(f"num_classes is {self.num_classes}; a detector needs at least one")
        if self.roi_samples_per_image < 1:
            raise ValueError(
                f"roi_samples_per_image is {self.roi_samples_per_image}; it must be at least 1"
            )


class Detector(Pretrained):
    """A backbone and a transform; a subclass adds neck and heads.

    Args:
        options: see :func:`rmt.detection.create_detector`.

    Attributes:
        options: as given.
        iou_threshold: of two boxes of a class with a larger IoU, only the better one is kept.
        max_detections: largest number of detections per image.

    Raises:
        ValueError: for an unknown backbone, or sizes that do not fit together.
    """

    task = "detection"
    #: Name of a subclass in ``create_detector`` and in saved files.
    architecture: str
    has_masks: bool
    #: What makes the backbone.
    backbone_type: ClassVar[type[nn.Module]] = Backbone
    backbone: Backbone
    neck: nn.Module

    def __init__(self, options: DetectorOptions) -> None:
        super().__init__()
        self.options = options
        self.num_classes = options.num_classes
        self.info: dict[str, Any] = {}
        self.iou_threshold = 0.5
        self.max_detections = 100
        self.transform = Transform(options.min_size, options.max_size)
        backbone: Any = self.backbone_type
        self.backbone = backbone(
            options.backbone, drop_path_rate=options.drop_path_rate, **options.backbone_options
        )

    @property
    def config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to build this model again.

        The number of RoI samples is not part of it: it only affects training, and the recipe
        that is saved with the weights states it.
        """
        args: dict[str, Any] = asdict(self.options)
        args["backbone_options"] = without_download(self.options.backbone_options)
        del args["num_classes"], args["roi_samples_per_image"]
        return {
            "architecture": self.architecture,
            "num_classes": self.num_classes,
            "model_args": args,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the model that :attr:`config` describes, randomly initialised."""
        return cls(DetectorOptions(num_classes=config["num_classes"], **config["model_args"]))

    def forward(
        self,
        images: Sequence[Tensor] | Tensor,
        targets: Sequence[Target] | None = None,
        *,
        resize: bool = True,
        score_threshold: float = SCORE_THRESHOLD,
    ) -> list[Detections] | dict[str, Tensor]:
        """Detect objects; with targets, compute the training losses instead.

        Args:
            images: each (3, h, w), RGB floats in 0..1, of any size; or one (B, 3, h, w).
            targets: for each image ``boxes`` (N, 4), x1, y1, x2, y2 in its pixels, ``labels`` (N,)
                from 0, and for the mask heads ``masks`` (N, h, w). N may be 0. Boxes are clipped
                to their image, and each must have an area inside it.
            resize: False if a data pipeline has already resized the images.
            score_threshold: detections must score above it.

        Returns:
            For each image ``boxes`` (n, 4) in its own pixels, ``scores`` (n,), best first,
            ``labels`` (n,), and for the mask heads ``masks`` (n, h, w), bool. With targets a dict
            of scalar losses, whose sum is the total loss, in training and evaluation mode alike.

        Raises:
            ValueError: for an image or a target that is not as described, naming it.
        """
        images = check_images(images)
        if targets is None:
            return self._by_canvas(images, resize=resize, score_threshold=score_threshold)
        check_targets(images, targets, num_classes=self.num_classes, masks=self.has_masks)
        batch = self.batch(images, resize=resize)
        scaled = self.transform.targets(targets, batch)
        check_areas(targets, scaled)
        return self.losses(self.maps(batch), batch, scaled)

    def batch(self, images: Sequence[Tensor], *, resize: bool = True) -> Batch:
        """Resize images and pad them to one canvas, on the model's device and in its dtype."""
        weight = next(self.backbone.parameters())
        return self.transform.batch(images, like=weight, resize=resize)

    def maps(self, batch: Batch) -> list[Tensor]:
        """Return the maps of the feature pyramid, (B, 256, Hᵢ, Wᵢ), finest first."""
        return self.neck(self.backbone(batch.pixels))

    @abstractmethod
    def detect(
        self, maps: list[Tensor], batch: Batch, *, score_threshold: float = SCORE_THRESHOLD
    ) -> list[Detections]:
        """Return the detections of each image, in the pixels of the original image."""

    @abstractmethod
    def losses(
        self, maps: list[Tensor], batch: Batch, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Return the losses; ``targets`` are in the batch's pixels, masks padded as the images."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in the backward pass: less memory, the same results."""
        body: Any = self.backbone.body  # RMT and timm's models have this method
        body.set_grad_checkpointing(enable)

    def compile(self, *args: object, **options: object) -> None:
        """Compile the backbone in place, for all image sizes.

        The rest runs eagerly: the number of regions differs from batch to batch, so a graph of the
        whole model would be compiled again and again.
        """
        # Without this option, torch 2.14 fails on strides of dynamic sizes (pytorch issue 185510).
        self.backbone.compile(dynamic=True, options={"strict_output_strides": True})

    def compiled(self) -> Self:
        """Compile the backbone in place, and return this model."""
        self.compile()
        return self

    def _by_canvas(
        self, images: Sequence[Tensor], *, resize: bool, score_threshold: float
    ) -> list[Detections]:
        """Detect on the images of one padded size at a time.

        RMT's output depends on the size of the canvas, so the canvas of an image must not depend
        on the other images: a list gives the same detections as its images one by one.
        """
        canvases: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            canvas = self.transform.canvas_of(image, resize=resize)
            canvases.setdefault(canvas, []).append(i)
        found: dict[int, Detections] = {}
        for members in canvases.values():
            batch = self.batch([images[i] for i in members], resize=resize)
            detections = self.detect(self.maps(batch), batch, score_threshold=score_threshold)
            found.update(zip(members, detections, strict=True))
        return [found[i] for i in range(len(images))]
