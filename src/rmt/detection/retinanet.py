"""RetinaNet (arXiv 1708.02002): one stage that classifies and refines every anchor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from rmt.detection.anchors import AnchorGrid, by_anchor
from rmt.detection.boxes import clip, decode, encode, multiclass_nms
from rmt.detection.detector import SCORE_THRESHOLD, Detections, Detector, DetectorOptions
from rmt.detection.init import init_layers
from rmt.detection.matcher import IGNORED, Matcher
from rmt.detection.pyramid import RetinaPyramid
from rmt.detection.transform import Batch, Target
from rmt.modeling.necks import full_precision

# Foreground probability of a newly initialised head: with a larger one, the loss of the many
# background anchors would dominate the first steps.
_PRIOR = 0.01
#: Anchors per level that are decoded and passed to the suppression.
_CANDIDATES = 1000


class RetinaHead(nn.Module):
    """Class scores and box deltas, each from four 3×3 convolutions shared by all levels."""

    def __init__(self, channels: int, num_classes: int, per_cell: int) -> None:
        super().__init__()
        self.cls_convs = _tower(channels)
        self.reg_convs = _tower(channels)
        self.cls = nn.Conv2d(channels, per_cell * num_classes, 3, padding=1)
        self.reg = nn.Conv2d(channels, per_cell * 4, 3, padding=1)
        init_layers(
            [*self.cls_convs, *self.reg_convs, self.cls, self.reg],
            partial(nn.init.normal_, std=0.01),
        )
        assert self.cls.bias is not None
        nn.init.constant_(self.cls.bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return for each level logits (B, A·K, H, W) and deltas (B, A·4, H, W)."""
        return [self.cls(_apply_tower(self.cls_convs, x)) for x in maps], [
            self.reg(_apply_tower(self.reg_convs, x)) for x in maps
        ]


class RetinaNet(Detector):
    """One-stage detector; see :func:`rmt.detection.create_detector`."""

    architecture = "retinanet"
    has_masks = False
    matcher = Matcher(positive=0.5, negative=0.4, min_pos_iou=0.0)

    def __init__(self, options: DetectorOptions) -> None:
        super().__init__(options)
        for norm in self.backbone.norms[:1]:
            norm.requires_grad_(False)  # its map, of stride 4, is not used here
        self.anchors = AnchorGrid((8, 16, 32, 64, 128), tuple(4 * 2 ** (i / 3) for i in range(3)))
        self.neck = RetinaPyramid(self.backbone.channels)
        self.head = RetinaHead(256, options.num_classes, self.anchors.per_cell)

    def detect(
        self, maps: list[Tensor], batch: Batch, *, score_threshold: float = SCORE_THRESHOLD
    ) -> list[Detections]:
        """Return the detections of each image: decode the best anchors, rescale, suppress."""
        boxes, scores = self.candidates(maps, batch.sizes)
        found = []
        for i in range(len(boxes)):
            best = multiclass_nms(
                boxes[i] / batch.scales[i],
                scores[i],
                threshold=score_threshold,
                iou=self.iou_threshold,
                limit=self.max_detections,
            )
            found.append(dict(zip(("boxes", "scores", "labels"), best, strict=True)))
        return found

    def candidates(self, maps: list[Tensor], sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the 1000 best anchors per level, decoded, with the scores of all classes.

        Args:
            maps: of the pyramid.
            sizes: (B, 2), height and width that the boxes are clipped to.

        Returns:
            Boxes (B, n, 4) in the batch's pixels and probabilities (B, n, K).
        """
        kept = []
        for logits, deltas, anchors in zip(*self.head(maps), self.anchors(maps), strict=True):
            scores = full_precision(by_anchor(logits, self.anchors.per_cell)).sigmoid()
            deltas = full_precision(by_anchor(deltas, self.anchors.per_cell))
            boxes = anchors.expand_as(deltas)
            if scores.shape[1] > _CANDIDATES:
                best = scores.amax(dim=2).topk(_CANDIDATES, dim=1).indices[..., None]
                scores = scores.take_along_dim(best, dim=1)
                deltas, boxes = (x.take_along_dim(best, dim=1) for x in (deltas, boxes))
            kept.append((clip(decode(boxes, deltas), sizes[:, None]), scores))
        boxes, scores = zip(*kept, strict=True)
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)

    def losses(
        self, maps: list[Tensor], batch: Batch, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Return the focal loss (gamma 2, alpha 0.25), and the L1 loss on the deltas.

        Both are sums over anchors, divided by the number of positive anchors, which counts as at
        least 1 per image.
        """
        all_logits, all_deltas = (
            full_precision(torch.cat([by_anchor(x, self.anchors.per_cell) for x in level], dim=1))
            for level in self.head(maps)
        )
        anchors = torch.cat(self.anchors(maps))
        focal = l1 = all_logits.new_zeros(())
        number = 0
        for i, target in enumerate(targets):
            use = self.anchors.usable(
                maps, padded=_pair(batch.padded[i]), size=_pair(batch.sizes[i]), inside=False
            )
            own, logits, deltas = anchors[use], all_logits[i][use], all_deltas[i][use]
            match = self.matcher(own, target["boxes"])
            positive, counted = (match >= 0).nonzero()[:, 0], match != IGNORED
            index = match[positive]
            one_hot = torch.zeros_like(logits)
            one_hot[positive, target["labels"][index]] = 1
            focal = focal + sigmoid_focal_loss(logits[counted], one_hot[counted], reduction="sum")
            true_deltas = encode(own[positive], target["boxes"][index]).to(deltas.dtype)
            l1 = l1 + F.l1_loss(deltas[positive], true_deltas, reduction="sum")
            number += max(len(positive), 1)
        return {"loss_cls": focal / number, "loss_bbox": l1 / number}


def _tower(channels: int) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Conv2d(before, after, 3, padding=1) for before, after in pairwise([channels] * 5)
    )


def _apply_tower(tower: nn.ModuleList, x: Tensor) -> Tensor:
    for conv in tower:
        x = F.relu(conv(x))
    return x


def _pair(size: Tensor) -> tuple[int, int]:
    height, width = size.tolist()
    return height, width
