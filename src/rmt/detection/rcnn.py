"""Mask R-CNN (arXiv 1703.06870) and Cascade Mask R-CNN (arXiv 1712.00726).

In both, proposals go through stages that classify, refine and segment them: one stage in Mask
R-CNN, three with rising IoU thresholds in Cascade Mask R-CNN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmt.detection.boxes import clip, decode, encode, giou_loss, multiclass_nms
from rmt.detection.detector import SCORE_THRESHOLD, Detections, Detector, DetectorOptions
from rmt.detection.masks import mask_targets, paste
from rmt.detection.matcher import Matcher, Sampler
from rmt.detection.pyramid import RCNNPyramid
from rmt.detection.roi import BOX_SIZE, MASK_SIZE, BoxHead, MaskHead, roi_features, to_rois
from rmt.detection.rpn import RPN
from rmt.detection.transform import Batch, Target
from rmt.modeling.necks import full_precision

# Weight of the GIoU loss, which replaces L1 on deltas (weight 1).
_GIOU_WEIGHT = 10
#: At most this fraction of the RoI samples of an image are positive.
_POSITIVE_FRACTION = 0.25


@dataclass(frozen=True)
class Stage:
    """How one stage is trained.

    Attributes:
        matcher: assigns proposals to objects.
        stds: the box deltas are divided by them.
        weight: of its losses in the total.
    """

    matcher: Matcher
    stds: tuple[float, ...]
    weight: float = 1.0


@dataclass
class Sampled:
    """The proposals of a batch that a stage is trained on, image by image.

    Attributes:
        rois: (N, 5), index of the image and box; the positive ones of each image first.
        labels: (N,), K for background.
        positive: (P,), rows that are assigned to an object.
        boxes: (P, 4), the boxes of these objects.
        masks: (P, 28, 28), the targets of the mask head.
        is_object: (N,), rows that are the objects themselves, added as perfect proposals.
    """

    rois: Tensor
    labels: Tensor
    positive: Tensor
    boxes: Tensor
    masks: Tensor
    is_object: Tensor


class RCNN(Detector):
    """The code of both detectors; they differ in the class attributes."""

    has_masks = True
    stages: tuple[Stage, ...]
    #: Number of convolutions and of hidden linear layers in a box head.
    box_layers: tuple[int, int]
    #: GIoU loss on decoded boxes, instead of L1 on deltas.
    reg_decoded_bbox: bool
    #: The release's Mask R-CNN regards regions whose lower edge is 0 as padding and drops them.
    drops_upper_edge: bool

    def __init__(self, options: DetectorOptions) -> None:
        super().__init__(options)
        num_classes, (convs, linears) = options.num_classes, self.box_layers
        self.sampler = Sampler(options.roi_samples_per_image, _POSITIVE_FRACTION)
        self.neck = RCNNPyramid(self.backbone.channels)
        self.rpn = self.new_rpn()
        self.box_heads = nn.ModuleList(
            BoxHead(256, num_classes, convs=convs, linears=linears) for _ in self.stages
        )
        self.mask_heads = nn.ModuleList(MaskHead(256, num_classes) for _ in self.stages)

    def new_rpn(self) -> RPN:
        """Return the region proposal network."""
        raise NotImplementedError

    def detect(
        self, maps: list[Tensor], batch: Batch, *, score_threshold: float = SCORE_THRESHOLD
    ) -> list[Detections]:
        """Return the detections of each image: propose, classify and refine, then add masks."""
        logits, deltas = self.rpn(maps)
        proposals = self.rpn.proposals(logits, deltas, batch.sizes, training=False)
        boxes = [own for own, _ in proposals]
        detections = self.classify(maps, boxes, batch, score_threshold=score_threshold)
        return self.add_masks(maps, detections, batch)

    def classify(
        self, maps: list[Tensor], proposals: list[Tensor], batch: Batch, *, score_threshold: float
    ) -> list[Detections]:
        """Return boxes, scores and labels of each image, in the pixels of the original image."""
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
                threshold=score_threshold,
                iou=self.iou_threshold,
                limit=self.max_detections,
            )
            found.append(dict(zip(("boxes", "scores", "labels"), best, strict=True)))
        return found

    def cascade(
        self, maps: list[Tensor], proposals: list[Tensor], batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Send proposals through all stages; each one gets the boxes that the previous one refined.

        Returns:
            The RoIs of the last stage (N, 5), the mean of the logits over stages (N, K + 1), and
            the deltas of the last stage (N, K, 4).
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
        """Return logits (N, K + 1) and deltas (N, K, 4) of a box head for RoIs (N, 5)."""
        logits, deltas = head(roi_features(maps, rois, BOX_SIZE))
        return full_precision(logits), full_precision(deltas)

    def refine(
        self, rois: Tensor, labels: Tensor, deltas: Tensor, batch: Batch, stage: Stage
    ) -> Tensor:
        """Return RoIs (N, 5) refined by the deltas of the given classes, and clipped."""
        own = deltas[torch.arange(len(deltas), device=deltas.device), labels]
        boxes = clip(decode(rois[:, 1:], own, stage.stds), batch.sizes[rois[:, 0].long()])
        return torch.cat([rois[:, :1], boxes], dim=1)

    def add_masks(
        self, maps: list[Tensor], detections: list[Detections], batch: Batch
    ) -> list[Detections]:
        """Add ``masks`` (n, h, w) to the detections of each image, in its original pixels."""
        scaled = [found["boxes"] * batch.scales[i] for i, found in enumerate(detections)]
        labels = torch.cat([found["labels"] for found in detections])
        probabilities = self.mask_probabilities(maps, to_rois(scaled), labels)
        parts = probabilities.split([len(own) for own in scaled])
        for i, found in enumerate(detections):
            height, width = batch.originals[i].tolist()
            # Multiplied, then divided as in the release: float32 rounding changes the box.
            boxes = scaled[i] / batch.scales[i]
            found["masks"] = paste(parts[i], boxes, (height, width))
            if self.drops_upper_edge:
                found["masks"][boxes[:, 3] == 0] = False
        return detections

    def mask_probabilities(self, maps: list[Tensor], rois: Tensor, labels: Tensor) -> Tensor:
        """Return the mask of each RoI's class as the mean over stages, (N, 28, 28)."""
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
        """Return the losses of each stage, trained on the boxes that the previous one refined."""
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
                refined = self.refine(sampled.rois, labels, deltas.detach(), batch, stage)
                refined = refined[~sampled.is_object]
                proposals = [refined[refined[:, 0] == j, 1:] for j in range(len(targets))]
        return losses

    def sample(self, proposals: list[Tensor], targets: Sequence[Target], stage: Stage) -> Sampled:
        """Assign proposals to objects, add the objects themselves, and draw the samples."""
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
                    mask_targets(target["masks"], boxes[positive], index),
                    chosen < count,
                )
            )
        rois, labels, flags, objects, masks, is_object = map(torch.cat, zip(*parts, strict=True))
        return Sampled(rois, labels, flags.nonzero()[:, 0], objects, masks, is_object)

    def box_loss(self, deltas: Tensor, sampled: Sampled, stage: Stage) -> Tensor:
        """Return the sum over positive samples, divided by the number of all samples."""
        own = deltas[sampled.positive, sampled.labels[sampled.positive]]
        rois = sampled.rois[sampled.positive, 1:]
        if self.reg_decoded_bbox:
            total = _GIOU_WEIGHT * giou_loss(decode(rois, own, stage.stds), sampled.boxes).sum()
        else:
            true_deltas = encode(rois, sampled.boxes, stage.stds).to(own.dtype)
            total = F.l1_loss(own, true_deltas, reduction="sum")
        return total / max(len(sampled.rois), 1)

    def mask_loss(self, masks: Tensor, sampled: Sampled) -> Tensor:
        """Return the mean cross-entropy of each object's class; 0 without objects."""
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
        """Return the region proposal network."""
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
        """Return the region proposal network."""
        return RPN(256, smooth=1 / 9, inside=True, proposals=(2000, 1000))
