"""Detectors whose networks are exported graphs; the steps between these run in torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rmt.detection.detector import SCORE_THRESHOLD, Detections, Detector
from rmt.detection.rcnn import RCNN, CascadeMaskRCNN, MaskRCNN
from rmt.detection.retinanet import RetinaNet
from rmt.detection.transform import Batch
from rmt.modeling.bounded import build_on_meta
from rmt.modeling.graphs import Absent, Exported, Exports, Outputs
from rmt.modeling.saved import Description


class ExportedRetinaNet(Exported, RetinaNet):
    """A RetinaNet whose network, suppression included, is an exported graph."""

    backbone_type = Absent

    def maps(self, batch: Batch) -> list[Tensor]:
        """Return the images themselves: the maps are inside the graph."""
        return [batch.pixels]

    def detect(
        self, maps: list[Tensor], batch: Batch, *, score_threshold: float = SCORE_THRESHOLD
    ) -> list[Detections]:
        """Return the detections of each image, in the pixels of the original image."""
        found = []
        for i, image in enumerate(maps[0].split(1)):
            size, threshold = batch.sizes[i].float(), image.new_tensor(score_threshold)
            boxes, scores, labels = self.network(image, size, threshold)
            boxes = boxes / batch.scales[i]
            if len(labels) and not 0 <= labels.amin() <= labels.amax() < self.num_classes:
                raise ValueError(f"the export finds more than the {self.num_classes} classes of it")
            found.append({"boxes": boxes, "scores": scores, "labels": labels.long()})
        return found

    def put_in(self, exports: Exports) -> None:
        """Put the graph ``model`` in."""
        self.network = exports["model"]
        del self.neck, self.head


class _ExportedRCNN(Exported, RCNN):
    """A two-stage detector whose dense part and heads are exported graphs."""

    backbone_type = Absent

    def maps(self, batch: Batch) -> list[Tensor]:
        """Return the maps of the pyramid, with the outputs of the proposal network."""
        images = [self.dense(image) for image in batch.pixels.split(1)]
        return _Maps([torch.cat(own) for own in zip(*images, strict=True)])

    def put_in(self, exports: Exports) -> None:
        """Put the graphs ``dense``, ``box_head_0``, ``mask_head_0`` ... in."""
        self.dense = exports["dense"]
        del self.neck
        rpn: Any = self.rpn
        del rpn.conv, rpn.cls, rpn.reg
        rpn.forward = lambda maps: (maps.logits, maps.deltas)
        for heads, name in ((self.box_heads, "box_head"), (self.mask_heads, "mask_head")):
            for i in range(len(heads)):
                heads[i] = _Head(exports[f"{name}_{i}"])


class ExportedMaskRCNN(_ExportedRCNN, MaskRCNN):
    """A Mask R-CNN whose dense part and heads are exported graphs."""


class ExportedCascadeMaskRCNN(_ExportedRCNN, CascadeMaskRCNN):
    """A Cascade Mask R-CNN whose dense part and heads are exported graphs."""


_EXPORTED = {
    kind.architecture: kind
    for kind in (ExportedRetinaNet, ExportedMaskRCNN, ExportedCascadeMaskRCNN)
}


def exported(described: Description, exports: Exports) -> Detector:
    """Return the detector whose networks are exported graphs.

    Raises:
        ValueError: if the description is impossible, or of a detector with other graphs.
    """
    kind = _EXPORTED.get(described.config["architecture"])
    if kind is None:
        raise ValueError(f"unknown detection head {described.config['architecture']!r}")
    model: Any = build_on_meta(kind.from_config, described.config, {}, name="the exported file")
    model.backbone = Absent()
    model.put_in(exports)
    model.info = dict(described.info)
    set_size(model, exports.size, any_size=False)
    return model.eval()


def set_size(model: Detector, size: tuple[int, int], *, any_size: bool) -> None:
    """Let a detector see images as its export for some canvas does."""
    model.transform.canvas = size


class _Maps(list):
    """The maps of the pyramid, with the outputs of the proposal network as attributes."""

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        super().__init__(outputs[:5])
        self.logits, self.deltas = list(outputs[5:10]), list(outputs[10:])


class _Head(nn.Module):
    """An exported head: one output as a tensor, several as a tuple."""

    def __init__(self, engine: Any) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, features: Tensor) -> Tensor | Outputs:
        outputs = self.engine(features)
        return outputs if len(outputs) > 1 else outputs[0]
