"""Mask R-CNN (arXiv 1703.06870) and Cascade Mask R-CNN (arXiv 1712.00726).

Both are a row of stages that classify, move and mask the proposals: one stage, or three of rising
quality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmt.detection.boxes import clip, decode, encode, giou_loss, multiclass_nms
from rmt.detection.detector import Detections, Detector
from rmt.detection.masks import paste, targets_of
from rmt.detection.matcher import Matcher, Sampler
from rmt.detection.pyramid import RCNNPyramid
from rmt.detection.roi import BOX_SIZE, MASK_SIZE, BoxHead, MaskHead, roi_features, to_rois
from rmt.detection.rpn import RPN
from rmt.detection.transform import Batch, Target
from rmt.modeling.necks import full_precision

# GIoU counts ten times where it takes the place of L1 on deltas.
_GIOU_WEIGHT = 10


@dataclass(frozen=True)
class Stage:
    """How one stage learns.

    Attributes:
        matcher: assignment of proposals.
        stds: of the box deltas.
        weight: of its losses.
    """

    matcher: Matcher
    stds: tuple[float, ...]
    weight: float = 1.0


@dataclass
class Sampled:
    """The proposals of a batch that a stage learns from; the images' rows follow each other.

    Attributes:
        rois: (N, 5), of each image those with objects first.
        labels: (N,), K for background.
        positive: (P,), rows with an object.
        boxes: (P, 4), the objects' boxes.
        masks: (P, 28, 28), what the mask head should say.
        is_object: (N,), rows that are objects themselves, added as perfect proposals.
    """

    rois: Tensor
    labels: Tensor
    positive: Tensor
    boxes: Tensor
    masks: Tensor
    is_object: Tensor


class RCNN(Detector):
    """What both detectors share; the class attributes say how they differ."""

    has_masks = True
    stages: tuple[Stage, ...]
    #: Convolutions and hidden linear layers of a box head.
    box_layers: tuple[int, int]
    #: Loss on decoded boxes (GIoU) instead of L1 on deltas.
    reg_decoded_bbox: bool
    #: The release's Mask R-CNN takes a region whose lower edge is 0 for padding.
    drops_upper_edge: bool

    def __init__(
        self,
        backbone: str,
        *,
        num_classes: int = 80,
        min_size: int = 800,
        max_size: int = 1333,
        drop_path_rate: float | None = None,
        backbone_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            backbone,
            num_classes=num_classes,
            min_size=min_size,
            max_size=max_size,
            drop_path_rate=drop_path_rate,
            backbone_options=backbone_options,
        )
        convs, linears = self.box_layers
        self.sampler = Sampler(512, 0.25)
        self.neck = RCNNPyramid(self.backbone.channels)
        self.rpn = self.new_rpn()
        self.box_heads = nn.ModuleList(
            BoxHead(256, num_classes, convs=convs, linears=linears) for _ in self.stages
        )
        self.mask_heads = nn.ModuleList(MaskHead(256, num_classes) for _ in self.stages)

    def new_rpn(self) -> RPN:
        """Return the proposal network."""
        raise NotImplementedError

    def detect(self, maps: list[Tensor], batch: Batch) -> list[Detections]:
        """Return each image's detections: propose, classify and move, then mask what is left."""
        logits, deltas = self.rpn(maps)
        proposals = self.rpn.proposals(logits, deltas, batch.sizes, training=False)
        detections = self.classify(maps, [boxes for boxes, _ in proposals], batch)
        return self.add_masks(maps, detections, batch)

    def classify(
        self, maps: list[Tensor], proposals: list[Tensor], batch: Batch
    ) -> list[Detections]:
        """Return each image's boxes, scores and labels in the pixels of the given image."""
        rois, logits, deltas = self.cascade(maps, proposals, batch)
        scores = logits.softmax(dim=1)[:, :-1]
        image = rois[:, 0].long()
        boxes = decode(rois[:, None, 1:], deltas, self.stages[-1].stds)
        boxes = clip(boxes, batch.sizes[image][:, None]) / batch.scales[image][:, None]
        if self.drops_upper_edge:
            scores = scores.where(rois[:, 4:] != 0, 0.0)
        found = []
        for i in range(len(proposals)):
            best = multiclass_nms(
                boxes[image == i],
                scores[image == i],
                threshold=self.score_threshold,
                iou=self.iou_threshold,
                limit=self.max_detections,
            )
            found.append(dict(zip(("boxes", "scores", "labels"), best, strict=True)))
        return found

    def cascade(
        self, maps: list[Tensor], proposals: list[Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Send proposals through all stages, each on the boxes of the one before.

        Returns:
            The last stage's regions (N, 5), the mean of all stages' logits (N, K + 1), and the last
            stage's deltas (N, K, 4).
        """
        rois = to_rois(proposals)
        total, deltas = self.box_scores(self.box_heads[0], maps, rois)
        logits = total
        for before, head in zip(self.stages[:-1], self.box_heads[1:], strict=True):
            rois = self.refine(rois, logits[:, :-1].argmax(dim=1), deltas, batch, before)
            logits, deltas = self.box_scores(head, maps, rois)
            total = total + logits
        return rois, total / len(self.stages), deltas

    def box_scores(
        self, head: nn.Module, maps: list[Tensor], rois: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return a box head's logits (N, K + 1) and deltas (N, K, 4) for regions (N, 5)."""
        logits, deltas = head(roi_features(maps, rois, BOX_SIZE))
        return full_precision(logits), full_precision(deltas)

    def refine(
        self, rois: Tensor, labels: Tensor, deltas: Tensor, batch: Batch, stage: Stage
    ) -> Tensor:
        """Return regions (N, 5) moved by the deltas of the given classes, and clipped."""
        own = deltas[torch.arange(len(deltas), device=deltas.device), labels]
        boxes = clip(decode(rois[:, 1:], own, stage.stds), batch.sizes[rois[:, 0].long()])
        return torch.cat([rois[:, :1], boxes], dim=1)

    def add_masks(
        self, maps: list[Tensor], detections: list[Detections], batch: Batch
    ) -> list[Detections]:
        """Add ``masks`` (n, h, w) in the pixels of the given image to each image's detections."""
        scaled = [found["boxes"] * batch.scales[i] for i, found in enumerate(detections)]
        labels = torch.cat([found["labels"] for found in detections])
        probabilities = self.mask_probabilities(maps, to_rois(scaled), labels)
        parts = probabilities.split([len(own) for own in scaled])
        for i, found in enumerate(detections):
            height, width = batch.originals[i].tolist()
            # Multiplied and divided: in float32 that is not the box itself, and the release's is.
            boxes = scaled[i] / batch.scales[i]
            found["masks"] = paste(parts[i], boxes, (height, width))
            if self.drops_upper_edge:
                found["masks"][boxes[:, 3] == 0] = False
        return detections

    def mask_probabilities(self, maps: list[Tensor], rois: Tensor, labels: Tensor) -> Tensor:
        """Return the mean of all stages' masks of each region's class, (N, 28, 28)."""
        features = roi_features(maps, rois, MASK_SIZE)
        row = torch.arange(len(rois), device=rois.device)
        masks = [full_precision(head(features)[row, labels]).sigmoid() for head in self.mask_heads]
        return torch.stack(masks).mean(dim=0)

    def losses(
        self, maps: list[Tensor], batch: Batch, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Return the losses of the proposal network and of each stage."""
        logits, deltas = self.rpn(maps)
        losses = self.rpn.losses(logits, deltas, batch, targets)
        proposals = self.rpn.proposals(logits, deltas, batch.sizes, training=True)
        boxes = [own for own, _ in proposals]
        return losses | self.stage_losses(maps, boxes, batch, targets)

    def stage_losses(
        self,
        maps: list[Tensor],
        proposals: list[Tensor],
        batch: Batch,
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """Return the losses of each stage; a later one learns on what an earlier one has moved."""
        losses = {}
        for i, stage in enumerate(self.stages):
            sampled = self.sample(proposals, targets, stage)
            logits, deltas = self.box_scores(self.box_heads[i], maps, sampled.rois)
            masks = self.mask_heads[i](
                roi_features(maps, sampled.rois[sampled.positive], MASK_SIZE)
            )
            own = {
                "loss_cls": F.cross_entropy(logits, sampled.labels),
                "loss_bbox": self.box_loss(deltas, sampled, stage),
                "loss_mask": self.mask_loss(full_precision(masks), sampled),
            }
            prefix = f"s{i}." if len(self.stages) > 1 else ""
            losses |= {prefix + name: stage.weight * value for name, value in own.items()}
            if stage is not self.stages[-1]:
                best = logits[:, :-1].argmax(dim=1)
                labels = sampled.labels.where(sampled.labels < self.num_classes, best)
                moved = self.refine(sampled.rois, labels, deltas.detach(), batch, stage)
                moved = moved[~sampled.is_object]
                proposals = [moved[moved[:, 0] == j, 1:] for j in range(len(targets))]
        return losses

    def sample(self, proposals: list[Tensor], targets: Sequence[Target], stage: Stage) -> Sampled:
        """Assign proposals to objects, add the objects themselves, and choose which to learn."""
        parts = []
        for i, (boxes, target) in enumerate(zip(proposals, targets, strict=True)):
            objects = target["boxes"]
            count = len(objects)
            match = stage.matcher(boxes, objects)
            boxes = torch.cat([objects.to(boxes.dtype), boxes])
            match = torch.cat([torch.arange(count, device=match.device), match])
            positive, negative = self.sampler(match)
            chosen = torch.cat([positive, negative])
            index = match[positive]
            labels = torch.full_like(chosen, self.num_classes)
            labels[: len(positive)] = target["labels"][index]
            parts.append(
                (
                    F.pad(boxes[chosen], (1, 0), value=float(i)),
                    labels,
                    torch.arange(len(chosen), device=chosen.device) < len(positive),
                    objects[index],
                    targets_of(target["masks"], boxes[positive], index),
                    chosen < count,
                )
            )
        rois, labels, flags, objects, masks, is_object = map(torch.cat, zip(*parts, strict=True))
        return Sampled(rois, labels, flags.nonzero()[:, 0], objects, masks, is_object)

    def box_loss(self, deltas: Tensor, sampled: Sampled, stage: Stage) -> Tensor:
        """Return the loss on the boxes of each object's class, over the number of all regions."""
        own = deltas[sampled.positive, sampled.labels[sampled.positive]]
        rois = sampled.rois[sampled.positive, 1:]
        if self.reg_decoded_bbox:
            total = _GIOU_WEIGHT * giou_loss(decode(rois, own, stage.stds), sampled.boxes).sum()
        else:
            wanted = encode(rois, sampled.boxes, stage.stds).to(own.dtype)
            total = F.l1_loss(own, wanted, reduction="sum")
        return total / max(len(sampled.rois), 1)

    def mask_loss(self, masks: Tensor, sampled: Sampled) -> Tensor:
        """Return the mean cross-entropy of each object's own channel; 0 without objects."""
        row = torch.arange(len(masks), device=masks.device)
        own = masks[row, sampled.labels[sampled.positive]]
        total = F.binary_cross_entropy_with_logits(
            own, sampled.masks.to(own.dtype), reduction="sum"
        )
        return total / max(own.numel(), 1)


class MaskRCNN(RCNN):
    """Two-stage detector with masks; see :func:`rmt.detection.create_detector`."""

    architecture = "mask_rcnn"
    stages = (Stage(Matcher(0.5, 0.5, min_pos_iou=0.5), (0.1, 0.1, 0.2, 0.2)),)
    box_layers = (0, 2)
    reg_decoded_bbox = False
    drops_upper_edge = True

    def new_rpn(self) -> RPN:
        """Return the proposal network."""
        return RPN(256)


class CascadeMaskRCNN(RCNN):
    """Three-stage detector with masks; see :func:`rmt.detection.create_detector`."""

    architecture = "cascade_mask_rcnn"
    stages = (
        Stage(Matcher(0.5, 0.5), (0.1, 0.1, 0.2, 0.2)),
        Stage(Matcher(0.6, 0.6), (0.05, 0.05, 0.1, 0.1), weight=0.5),
        Stage(Matcher(0.7, 0.7), (0.033, 0.033, 0.067, 0.067), weight=0.25),
    )
    box_layers = (4, 1)
    reg_decoded_bbox = True
    drops_upper_edge = False

    def new_rpn(self) -> RPN:
        """Return the proposal network."""
        return RPN(256, smooth=1 / 9, inside=True, proposals=(2000, 1000))
