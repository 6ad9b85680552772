"""What all detectors share: the way from images to detections or to losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor, nn

from rmt.detection.check import check_areas, check_images, check_targets
from rmt.detection.transform import Batch, Target, Transform
from rmt.modeling.necks import Backbone
from rmt.modeling.pretrained import Pretrained

Detections = dict[str, Tensor]


class Detector(Pretrained, nn.Module):
    """A backbone and a transform; a subclass adds neck and heads.

    See :func:`rmt.detection.create_detector` for the arguments.

    Attributes:
        score_threshold: detections at or below it are dropped (0.05, as in the release).
        iou_threshold: overlap at which the better of two boxes of a class remains.
        max_detections: most detections of an image.
    """

    task = "detection"
    #: What a subclass is called in ``create_detector`` and in saved files.
    architecture: str
    has_masks: bool
    backbone: Backbone
    neck: nn.Module

    def __init__(
        self,
        backbone: str,
        *,
        num_classes: int,
        min_size: int,
        max_size: int,
        drop_path_rate: float | None,
        backbone_options: Mapping[str, Any] | None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; a detector needs at least one")
        options = dict(backbone_options or {})
        self.num_classes = num_classes
        self.info: dict[str, Any] = {}
        self.score_threshold = 0.05
        self.iou_threshold = 0.5
        self.max_detections = 100
        self._args = {
            "backbone": backbone,
            "min_size": min_size,
            "max_size": max_size,
            "drop_path_rate": drop_path_rate,
            "backbone_options": options,
        }
        self.transform = Transform(min_size, max_size)
        self.backbone = Backbone(backbone, drop_path_rate=drop_path_rate, **options)

    @property
    def config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to build this model again."""
        options = self._args["backbone_options"]
        # Weights come from the file, never from a second download.
        kept = {key: value for key, value in options.items() if key != "pretrained"}
        return {
            "architecture": self.architecture,
            "num_classes": self.num_classes,
            "model_args": self._args | {"backbone_options": kept},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the model that :attr:`config` describes, with fresh weights."""
        return cls(num_classes=config["num_classes"], **config["model_args"])

    def forward(
        self,
        images: Sequence[Tensor] | Tensor,
        targets: Sequence[Target] | None = None,
        *,
        resize: bool = True,
    ) -> list[Detections] | dict[str, Tensor]:
        """Detect objects, or with targets return the training losses.

        Args:
            images: each (3, h, w), RGB floats in 0..1, of any size; or one (B, 3, h, w).
            targets: for each image ``boxes`` (N, 4), x1, y1, x2, y2 in its pixels, ``labels`` (N,)
                from 0, and for the mask heads ``masks`` (N, h, w). N may be 0. Boxes are cut to
                their image, and each must have an area in it.
            resize: False where a data pipeline has already chosen the images' sizes.

        Returns:
            For each image ``boxes`` (n, 4) in its own pixels, ``scores`` (n,), best first,
            ``labels`` (n,) and for the mask heads ``masks`` (n, h, w), bool. With targets a dict
            of scalar losses that add up to the total, in training and evaluation mode alike.

        Raises:
            ValueError: if an image or a target is of a wrong kind; it says which and why.
        """
        images = check_images(images)
        if targets is None:
            return self._by_canvas(images, resize)
        check_targets(images, targets, num_classes=self.num_classes, masks=self.has_masks)
        batch = self.batch(images, resize=resize)
        scaled = self.transform.targets(targets, batch)
        check_areas(targets, scaled)
        return self.losses(self.maps(batch), batch, scaled)

    def batch(self, images: Sequence[Tensor], *, resize: bool = True) -> Batch:
        """Put images on one canvas, on the model's device and in its dtype."""
        weight = next(self.backbone.parameters())
        return self.transform.batch(images, like=weight, resize=resize)

    def maps(self, batch: Batch) -> list[Tensor]:
        """Return the pyramid's maps (B, 256, Hᵢ, Wᵢ), finest first."""
        return self.neck(self.backbone(batch.pixels))

    @abstractmethod
    def detect(self, maps: list[Tensor], batch: Batch) -> list[Detections]:
        """Return each image's detections in the pixels of the image as it was given."""

    @abstractmethod
    def losses(
        self, maps: list[Tensor], batch: Batch, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Return the losses; ``targets`` are in the batch's pixels, masks padded like the image."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in the backward pass: less memory, equal output."""
        body: Any = self.backbone.body  # RMT or a network of timm: both have it
        body.set_grad_checkpointing(enable)

    def fuse(self) -> Self:
        """Return the exact inference form: see :func:`rmt.modeling.fuse.fuse`."""
        from rmt.modeling.fuse import fuse

        return fuse(self)

    def _by_canvas(self, images: Sequence[Tensor], resize: bool) -> list[Detections]:
        """Detect on images of one padded size at a time.

        RMT's output depends on the size of the canvas, so an image must not get a larger one
        because of its neighbours: a list gives what its images give one by one.
        """
        canvases: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            canvas = self.transform.canvas_of(image, resize=resize)
            canvases.setdefault(canvas, []).append(i)
        found: dict[int, Detections] = {}
        for members in canvases.values():
            batch = self.batch([images[i] for i in members], resize=resize)
            found.update(zip(members, self.detect(self.maps(batch), batch), strict=True))
        return [found[i] for i in range(len(images))]
