"""RetinaNet (arXiv 1708.02002): every anchor of the pyramid is scored and moved, in one stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from rmt.detection.anchors import AnchorGrid, by_anchor
from rmt.detection.boxes import clip, decode, encode, multiclass_nms
from rmt.detection.detector import Detections, Detector
from rmt.detection.init import start
from rmt.detection.matcher import IGNORED, Matcher
from rmt.detection.pyramid import RetinaPyramid
from rmt.detection.transform import Batch, Target
from rmt.modeling.necks import full_precision

# Foreground probability of a fresh head; without it background would swamp the first steps.
_PRIOR = 0.01
_CANDIDATES = 1000


class RetinaHead(nn.Module):
    """Two towers of four 3×3 convolutions, shared by all levels: class scores and box deltas."""

    def __init__(self, channels: int, num_classes: int, per_cell: int) -> None:
        super().__init__()
        self.cls_convs = _tower(channels)
        self.reg_convs = _tower(channels)
        self.cls = nn.Conv2d(channels, per_cell * num_classes, 3, padding=1)
        self.reg = nn.Conv2d(channels, per_cell * 4, 3, padding=1)
        start(
            [*self.cls_convs, *self.reg_convs, self.cls, self.reg],
            partial(nn.init.normal_, std=0.01),
        )
        assert self.cls.bias is not None
        nn.init.constant_(self.cls.bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return each level's logits (B, A·K, H, W) and deltas (B, A·4, H, W)."""
        return [self.cls(_apply_tower(self.cls_convs, x)) for x in maps], [
            self.reg(_apply_tower(self.reg_convs, x)) for x in maps
        ]


class RetinaNet(Detector):
    """One-stage detector; see :func:`rmt.detection.create_detector`."""

    architecture = "retinanet"
    has_masks = False
    matcher = Matcher(positive=0.5, negative=0.4, min_pos_iou=0.0)

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
        for norm in self.backbone.norms[:1]:
            norm.requires_grad_(False)  # of stride 4, which this pyramid leaves out
        self.anchors = AnchorGrid((8, 16, 32, 64, 128), tuple(4 * 2 ** (i / 3) for i in range(3)))
        self.neck = RetinaPyramid(self.backbone.channels)
        self.head = RetinaHead(256, num_classes, self.anchors.per_cell)

    def detect(self, maps: list[Tensor], batch: Batch) -> list[Detections]:
        """Return each image's detections: decode the best anchors, rescale, suppress."""
        boxes, scores = self.candidates(maps, batch.sizes)
        found = []
        for i in range(len(boxes)):
            best = multiclass_nms(
                boxes[i] / batch.scales[i],
                scores[i],
                threshold=self.score_threshold,
                iou=self.iou_threshold,
                limit=self.max_detections,
            )
            found.append(dict(zip(("boxes", "scores", "labels"), best, strict=True)))
        return found

    def candidates(self, maps: list[Tensor], sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Return each level's 1000 best anchors, decoded, with the scores of all their classes.

        Args:
            maps: of the pyramid.
            sizes: (B, 2), height and width that boxes are clipped to.

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
        """Return focal loss (gamma 2, alpha 0.25) and L1 on deltas, over the matched anchors.

        Both are sums divided by the number of anchors with objects, at least 1 an image.
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
            positive, judged = (match >= 0).nonzero()[:, 0], match != IGNORED
            index = match[positive]
            goal = torch.zeros_like(logits)
            goal[positive, target["labels"][index]] = 1
            focal = focal + sigmoid_focal_loss(logits[judged], goal[judged], reduction="sum")
            wanted = encode(own[positive], target["boxes"][index])
            l1 = l1 + F.l1_loss(deltas[positive], wanted.to(deltas.dtype), reduction="sum")
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
