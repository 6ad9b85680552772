"""The region proposal network (arXiv 1506.01497): boxes that may hold an object of any class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmt.detection.anchors import AnchorGrid, by_anchor
from rmt.detection.boxes import clip, decode, encode, nms_by_class
from rmt.detection.init import init_layers
from rmt.detection.matcher import Matcher, Sampler
from rmt.detection.transform import Batch, Target
from rmt.modeling.necks import full_precision

_IOU = 0.7


class RPN(nn.Module):
    """A 3×3 convolution on each level, then objectness and deltas of three anchors per cell.

    Args:
        channels: of the maps.
        smooth: beta of the smooth L1 loss on deltas; 0 is L1.
        inside: train only on anchors that lie wholly inside the image.
        proposals: largest number of proposals per image, (in training, in inference).
    """

    def __init__(
        self,
        channels: int,
        *,
        smooth: float = 0.0,
        inside: bool = False,
        proposals: tuple[int, int] = (1000, 1000),
    ) -> None:
        super().__init__()
        self.anchors = AnchorGrid((4, 8, 16, 32, 64), (8.0,))
        self.matcher = Matcher(positive=0.7, negative=0.3, min_pos_iou=0.3)
        self.sampler = Sampler(256, 0.5)
        self.smooth, self.inside, self.limits = smooth, inside, proposals
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.cls = nn.Conv2d(channels, self.anchors.per_cell, 1)
        self.reg = nn.Conv2d(channels, self.anchors.per_cell * 4, 1)
        init_layers([self.conv, self.cls, self.reg], partial(nn.init.normal_, std=0.01))

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return for each level logits (B, A, H, W) and deltas (B, A·4, H, W)."""
        hidden = [F.relu(self.conv(x)) for x in maps]
        return [self.cls(x) for x in hidden], [self.reg(x) for x in hidden]

    def proposals(
        self, logits: list[Tensor], deltas: list[Tensor], sizes: Tensor, *, training: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the best boxes (n, 4) of each image, in the batch's pixels, and scores (n,).

        Boxes without area are kept, as in the release: anchors outside the image are clipped to
        such boxes.

        Args:
            logits: of :meth:`forward`.
            deltas: of :meth:`forward`.
            sizes: (B, 2), height and width that the boxes are clipped to.
            training: 2000 candidates per level instead of 1000, and the limit for training.
        """
        candidates = 2000 if training else 1000
        anchors = self.anchors(logits)
        found = []
        for i, size in enumerate(sizes):
            boxes, scores, levels = [], [], []
            for level, own in enumerate(anchors):
                score = full_precision(by_anchor(logits[level][i : i + 1], 3)[0, :, 0]).detach()
                delta = full_precision(by_anchor(deltas[level][i : i + 1], 3)[0]).detach()
                # Sorted by probability, not by logit, as in the release: in float32 some
                # probabilities are equal, and then the first anchor comes first.
                score, order = score.sigmoid().sort(descending=True, stable=True)
                order = order[:candidates]
                boxes.append(clip(decode(own[order], delta[order]), size))
                scores.append(score[:candidates])
                levels.append(torch.full_like(order, level))
            box, score = torch.cat(boxes), torch.cat(scores)
            keep = nms_by_class(box, score, torch.cat(levels), iou=_IOU)
            keep = keep[: self.limits[0 if training else 1]]
            found.append((box[keep], score[keep]))
        return found

    def losses(
        self,
        logits: list[Tensor],
        deltas: list[Tensor],
        batch: Batch,
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """Return cross-entropy and L1 over sampled anchors, divided by their number."""
        anchors = torch.cat(self.anchors(logits))
        all_logits = full_precision(torch.cat([by_anchor(x, 3) for x in logits], dim=1))[..., 0]
        all_deltas = full_precision(torch.cat([by_anchor(x, 3) for x in deltas], dim=1))
        entropy = distance = all_logits.new_zeros(())
        number = 0
        for i, target in enumerate(targets):
            (height, width), (canvas_height, canvas_width) = (
                batch.sizes[i].tolist(),
                batch.padded[i].tolist(),
            )
            use = self.anchors.usable(
                logits,
                padded=(canvas_height, canvas_width),
                size=(height, width),
                inside=self.inside,
            ).nonzero()[:, 0]
            match = self.matcher(anchors[use], target["boxes"])
            positive, negative = self.sampler(match)
            objects = target["boxes"][match[positive]]
            positive, negative = use[positive], use[negative]
            sampled = all_logits[i][torch.cat([positive, negative])]
            labels = (torch.arange(len(sampled), device=sampled.device) < len(positive)).to(sampled)
            entropy = entropy + F.binary_cross_entropy_with_logits(sampled, labels, reduction="sum")
            distance = distance + F.smooth_l1_loss(
                all_deltas[i][positive],
                encode(anchors[positive], objects).to(all_deltas.dtype),
                reduction="sum",
                beta=self.smooth,
            )
            number += max(len(positive), 1) + max(len(negative), 1)
        return {"loss_rpn_cls": entropy / number, "loss_rpn_bbox": distance / number}
