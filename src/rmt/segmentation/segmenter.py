"""Backbone, neck and head as one model: images to logits, or with labels to losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmt.messages import did_you_mean
from rmt.modeling.necks import FPN, Backbone, full_precision
from rmt.modeling.pretrained import Pretrained
from rmt.modeling.registry import IMAGENET_MEAN, IMAGENET_STD
from rmt.segmentation.blocks import resize
from rmt.segmentation.semantic_fpn import SemanticFPNHead
from rmt.segmentation.upernet import AuxiliaryHead, UperNetHead

#: Head -> its published width.
HEADS = {"semantic_fpn": 128, "upernet": 512}
IGNORED = 255
MOST_CLASSES = IGNORED  # classes and the ignored value share 8 bits
AUX_WEIGHT = 0.4


class Segmenter(Pretrained, nn.Module):
    """A semantic segmenter; see :func:`create_segmenter` for its arguments."""

    task = "segmentation"

    def __init__(
        self,
        head: str,
        backbone: str,
        *,
        num_classes: int,
        in_chans: int = 3,
        channels: int | None = None,
        drop_path_rate: float | None = None,
        backbone_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"unknown segmentation head {head!r}{did_you_mean(head, HEADS)}")
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}; count the background too: at least 2")
        if num_classes > MOST_CLASSES:
            raise ValueError(
                f"num_classes is {num_classes}; at most {MOST_CLASSES} have a place in label maps "
                f"of 8 bits, in which {IGNORED} is the ignored value"
            )
        self.architecture = head
        self.num_classes = num_classes
        self.info: dict[str, Any] = {}
        self._args = {
            "backbone": backbone,
            "in_chans": in_chans,
            "channels": channels,
            "drop_path_rate": drop_path_rate,
            "backbone_options": dict(backbone_options or {}),
        }
        self.backbone = Backbone(
            backbone,
            in_chans=in_chans,
            drop_path_rate=drop_path_rate,
            **self._args["backbone_options"],
        )
        dims = [int(dim) for dim in self.backbone.channels]
        width = channels or HEADS[head]
        if head == "semantic_fpn":
            self.neck = FPN(dims, 2 * width)
            self.head = SemanticFPNHead(2 * width, num_classes, channels=width)
            self.aux_head = None
        else:
            self.neck = nn.Identity()
            self.head = UperNetHead(dims, num_classes, channels=width)
            self.aux_head = AuxiliaryHead(dims[2], num_classes, channels=width // 2)

    @property
    def config(self) -> dict[str, Any]:
        """Return what :meth:`from_config` needs to build this model again."""
        options = self._args["backbone_options"]
        # Weights come from the file, never from a second download.
        kept = {key: value for key, value in options.items() if key != "pretrained"}
        return {
            "architecture": self.architecture,
            "num_classes": self.num_classes,
            "model_args": self._args | {"backbone_options": kept},
        }

    @property
    def channel_statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation of each channel, of images scaled to 0..1."""
        cfg = self.info.get("pretrained_cfg", {})
        return cfg.get("mean", IMAGENET_MEAN), cfg.get("std", IMAGENET_STD)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Segmenter:
        """Build the model that :attr:`config` describes, with fresh weights."""
        args = dict(config["model_args"])
        backbone = args.pop("backbone")
        return cls(config["architecture"], backbone, num_classes=config["num_classes"], **args)

    def forward(
        self, images: Tensor, labels: Tensor | None = None, *, full_size: bool = True
    ) -> Tensor | dict[str, Tensor]:
        """Segment images, or with labels return the training losses.

        Args:
            images: (B, C, H, W), normalised; any H, W >= 1.
            labels: (B, H, W) class of each pixel as integers, 0 to K − 1; 255 is ignored.
            full_size: False leaves the logits at the head's size, a quarter of the image's.

        Returns:
            Logits (B, K, H, W), or (B, K, ⌈H/4⌉, ⌈W/4⌉); with labels a dict of scalar losses that
            add up to the total, the same in training and evaluation mode.

        Raises:
            ValueError: if the labels have another size than the images, are no integers, or (not
                looked at in compiled code) one of them is no class.
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
        # Looked at before any work is queued: an accelerator is not kept waiting then.
        if torch.compiler.is_compiling():
            return
        values = labels.long()
        for extreme in values.masked_fill(values == IGNORED, 0).aminmax():
            if not 0 <= extreme.item() < self.num_classes:
                raise ValueError(
                    f"labels hold the value {extreme.item()}; expected a class, 0 to "
                    f"{self.num_classes - 1}, or {IGNORED} for an ignored pixel"
                )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in the backward pass: less memory, equal output."""
        body: Any = self.backbone.body
        body.set_grad_checkpointing(enable)


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of logits, resized to the labels, averaged over **all** pixels.

    Ignored pixels (255) add nothing but are counted, as in mmseg 0.13 that the release trains
    with. So a batch without any labelled pixel has loss 0 instead of a division by zero.

    Args:
        logits: (B, K, h, w); half precision is widened to float32.
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
    """Make a semantic segmenter with fresh weights.

    Args:
        head: ``"semantic_fpn"`` (FPN of 256 channels, head of 128; arXiv 1901.02446) or
            ``"upernet"`` (512 channels, auxiliary head on stage 3 in training; arXiv 1807.10221).
        backbone: an RMT variant, or any timm model with maps of stride 4, 8, 16 and 32.
        num_classes: K, background included; 2 to 255.
        in_chans: image channels.
        channels: width of the head, with twice that in Semantic FPN's pyramid and half in
            UperNet's auxiliary head; None takes the published one.
        drop_path_rate: stochastic depth of the backbone; None takes its own.
        backbone_options: further arguments of the backbone's factory.

    Returns:
        A module: ``s(images)`` gives logits (B, K, H, W), ``s(images, labels)`` a dict of losses.

    Raises:
        ValueError: for an unknown head or backbone, naming the nearest, or one that lacks maps, or
            an impossible number of classes.
    """
    return Segmenter(
        head,
        backbone,
        num_classes=num_classes,
        in_chans=in_chans,
        channels=channels,
        drop_path_rate=drop_path_rate,
        backbone_options=backbone_options,
    )
