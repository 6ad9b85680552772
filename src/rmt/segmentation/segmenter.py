"""Backbone, neck and head as one model: images to logits, or with labels to losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmt.messages import did_you_mean
from rmt.modeling.necks import Backbone, full_precision, without_download
from rmt.modeling.pretrained import Pretrained
from rmt.modeling.registry import IMAGENET_MEAN, IMAGENET_STD
from rmt.segmentation import semantic_fpn, upernet
from rmt.segmentation.blocks import Head, resize

#: Name of a head -> how it is built.
HEADS: dict[str, Head] = {"semantic_fpn": semantic_fpn.HEAD, "upernet": upernet.HEAD}
#: Label of pixels without a class.
IGNORED = 255
#: Label maps have 8 bits for all classes and the ignored value.
MOST_CLASSES = IGNORED
#: Weight of the auxiliary head's loss.
AUX_WEIGHT = 0.4


@dataclass(frozen=True, kw_only=True)
class SegmenterOptions:
    """How a segmenter is built; see :func:`create_segmenter` for their meaning.

    Raises:
        ValueError: for an impossible number of classes.
    """

    backbone: str = "rmt_s"
    num_classes: int = 150
    in_chans: int = 3
    channels: int | None = None
    drop_path_rate: float | None = None
    backbone_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(
                f"num_classes is {self.num_classes}; it must be at least 2, background included"
            )
        if self.num_classes > MOST_CLASSES:
            raise ValueError(
                f"num_classes is {self.num_classes}; it must be at most {MOST_CLASSES}: label maps "
                f"have 8 bits, and {IGNORED} is the ignored value"
            )


class Segmenter(Pretrained):
    """A semantic segmenter.

    Args:
        head: ``"semantic_fpn"`` or ``"upernet"``.
        options: see :func:`create_segmenter`.

    Raises:
        ValueError: for an unknown head or backbone; the nearest is named.
    """

    task = "segmentation"
    #: What makes the backbone.
    backbone_type: ClassVar[type[nn.Module]] = Backbone
    #: Side of the square windows through which a network of one size sees others; 0: of any size.
    window = 0

    def __init__(self, head: str, options: SegmenterOptions) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"unknown segmentation head {head!r}{did_you_mean(head, HEADS)}")
        self.architecture = head
        self.options = options
        self.num_classes = num_classes = options.num_classes
        self.info: dict[str, Any] = {}
        backbone: Any = self.backbone_type
        self.backbone = backbone(
            options.backbone,
            in_chans=options.in_chans,
            drop_path_rate=options.drop_path_rate,
            **options.backbone_options,
        )
        dims = [int(dim) for dim in self.backbone.channels]
        kind = HEADS[head]
        self.neck, self.head, self.aux_head = kind.build(
            dims, num_classes, options.channels or kind.channels
        )

    @property
    def config(self) -> dict[str, Any]:
        """Return what :meth:`from_config` needs to build this model again."""
        args: dict[str, Any] = asdict(self.options)
        args["backbone_options"] = without_download(self.options.backbone_options)
        del args["num_classes"]
        return {
            "architecture": self.architecture,
            "num_classes": self.num_classes,
            "model_args": args,
        }

    @property
    def channel_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation per channel, of images scaled to 0..1."""
        cfg = self.info.get("pretrained_cfg", {})
        return cfg.get("mean", IMAGENET_MEAN), cfg.get("std", IMAGENET_STD)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Segmenter:
        """Build the model that :attr:`config` describes, randomly initialised."""
        options = SegmenterOptions(num_classes=config["num_classes"], **config["model_args"])
        return cls(config["architecture"], options)

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, full_size: bool = True
    ) -> Tensor | dict[str, Tensor]:
        """Segment images; with labels, compute the training losses instead.

        Args:
            images: (B, C, H, W), normalised; any H, W >= 1, in pixels.
            labels: (B, H, W), the class of each pixel as an integer, 0 to K − 1; 255 is ignored.
            full_size: False leaves the logits at the stride of the head, which is 4.

        Returns:
            Logits (B, K, H, W), or (B, K, ⌈H/4⌉, ⌈W/4⌉). With labels a dict of scalar losses, whose
            sum is the total loss, in training and evaluation mode alike.

        Raises:
            ValueError: if the labels do not have the size of the images, are not integers, or
                (not checked in compiled code) one of them is not a class.
        """
        if labels is not None:
            self._check(labels, (len(images), *images.shape[2:]))
        maps = self.backbone(images)
        logits = self.head(self.neck(maps))
        if labels is None:
            return resize(logits, images.shape[2:]) if full_size else logits
        losses = {"loss_seg": pixel_loss(logits, labels)}
        if self.aux_head is not None:
            losses["loss_aux"] = AUX_WEIGHT * pixel_loss(self.aux_head(maps[2]), labels)
        return losses

    def _check(self, labels: Tensor, shape: tuple[int, ...]) -> None:
        if labels.shape != shape:
            raise ValueError(f"labels have shape {tuple(labels.shape)}; expected {shape}")
        if labels.is_floating_point():
            raise ValueError(f"labels are {labels.dtype}; expected integers, such as torch.long")
        # Checked before any work is queued, so that this does not wait for the accelerator.
        if torch.compiler.is_compiling():
            return
        values = labels.long()
        for extreme in values.masked_fill(values == IGNORED, 0).aminmax():
            if not 0 <= extreme.item() < self.num_classes:
                raise ValueError(
                    f"labels contain {extreme.item()}; expected a class, 0 to "
                    f"{self.num_classes - 1}, or {IGNORED} for an ignored pixel"
                )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in the backward pass: less memory, the same results."""
        body: Any = self.backbone.body  # RMT and timm's models have this method
        body.set_grad_checkpointing(enable)


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of logits, resized to the labels, averaged over **all** pixels.

    Ignored pixels (255) contribute nothing but are counted, as in mmseg 0.13, which the release is
    trained with. So a batch without a labelled pixel has loss 0, and there is no division by zero.

    Args:
        logits: (B, K, h, w); half precision is converted to float32.
        labels: (B, H, W), integers.
    """
    logits = resize(full_precision(logits), labels.shape[1:])
    total = F.cross_entropy(logits, labels.long(), ignore_index=IGNORED, reduction="sum")
    return total / labels.numel()


def create_segmenter(
    head: str,
    backbone: str = "rmt_s",
    num_classes: int = 150,
    *,
    in_chans: int = 3,
    channels: int | None = None,
    drop_path_rate: float | None = None,
    backbone_options: Mapping[str, Any] | None = None,
) -> Segmenter:
    """Create a semantic segmenter, randomly initialised.

    Args:
        head: ``"semantic_fpn"`` (FPN of 256 channels, head of 128; arXiv 1901.02446) or
            ``"upernet"`` (512 channels, auxiliary head on stage 3 in training; arXiv 1807.10221).
        backbone: an RMT variant, or any timm model with maps of stride 4, 8, 16 and 32.
        num_classes: K, background included; 2 to 255.
        in_chans: image channels.
        channels: of the head; Semantic FPN's pyramid has twice as many, and UperNet's auxiliary
            head half as many. None takes the published number.
        drop_path_rate: stochastic depth of the backbone; None takes its own.
        backbone_options: further arguments of the backbone's factory.

    Returns:
        A module: ``s(images)`` gives logits (B, K, H, W), ``s(images, labels)`` a dict of losses.

    Raises:
        ValueError: for an unknown head or backbone (the nearest is named), for a backbone without
            maps of these strides, or for an impossible number of classes.
    """
    options = SegmenterOptions(
        backbone=backbone,
        num_classes=num_classes,
        in_chans=in_chans,
        channels=channels,
        drop_path_rate=drop_path_rate,
        backbone_options=backbone_options or {},
    )
    return Segmenter(head, options)
