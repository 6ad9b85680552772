"""Regions of interest (RoIs): the pyramid level of each, its features, and the heads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from rmt.detection.init import init_layers
from rmt.ops.geometry import wide

#: Strides of the levels that RoI features come from; the RPN's fifth level is not among them.
STRIDES = (4, 8, 16, 32)
# RoIs of less than twice this size (geometric mean of the sides, in pixels) use the finest level.
_FINEST = 56
#: Cells per side of the features of box head and mask head.
BOX_SIZE, MASK_SIZE = 7, 14


def to_rois(boxes: Sequence[Tensor]) -> Tensor:
    """Return the boxes (n, 4) of all images as RoIs (N, 5): index of the image, then the box."""
    return torch.cat([F.pad(own, (1, 0), value=float(i)) for i, own in enumerate(boxes)])


def levels_of(rois: Tensor) -> Tensor:
    """Return the level of each RoI (N, 5): 0 for the map of stride 4, up to 3 for stride 32."""
    size = rois[:, 3:] - rois[:, 1:3]
    level = ((size[:, 0] * size[:, 1]).sqrt() / _FINEST + 1e-6).log2().floor()
    return level.clamp(0, len(STRIDES) - 1).long()


def roi_features(maps: Sequence[Tensor], rois: Tensor, size: int) -> Tensor:
    """Return the RoIAlign features of each RoI, (N, C, size, size).

    Shifted by half a pixel, with as many samples per cell as the RoI needs; torchvision's own
    detectors do not shift and take two samples per axis.

    Args:
        maps: maps (B, C, H, W), finest first; the first four are used.
        rois: (N, 5), index of the image, and box in the batch's pixels.
        size: cells per side.
    """
    level = levels_of(rois)
    dtype = wide(maps[0].dtype)
    out = maps[0].new_zeros(len(rois), maps[0].shape[1], size, size, dtype=dtype)
    for i, stride in enumerate(STRIDES):
        own = (level == i).nonzero()[:, 0]
        part = roi_align(maps[i].to(dtype), rois[own].to(dtype), size, 1 / stride, 0, aligned=True)
        out = out.index_copy(0, own, part.to(dtype))
    return out.to(maps[0].dtype)


class BoxHead(nn.Module):
    """RoI features to class logits and class-specific box deltas.

    Two hidden linear layers (Mask R-CNN), or four 3×3 convolutions with batch norm and one linear
    layer (Cascade Mask R-CNN). The background is the last class.

    Args:
        channels: of the features.
        num_classes: K, without background.
        convs: number of convolutions.
        linears: number of hidden linear layers.
    """

    def __init__(self, channels: int, num_classes: int, *, convs: int, linears: int) -> None:
        super().__init__()
        hidden = 1024
        widths = [channels * BOX_SIZE**2] + [hidden] * linears
        self.convs = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
            )
            for _ in range(convs)
        )
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.cls = nn.Linear(hidden, num_classes + 1)
        self.reg = nn.Linear(hidden, num_classes * 4)
        init_layers(
            [layer for layer in self.convs.modules() if isinstance(layer, nn.Conv2d)],
            partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
        )
        init_layers(self.linears, nn.init.xavier_uniform_)
        init_layers([self.cls], partial(nn.init.normal_, std=0.01))
        init_layers([self.reg], partial(nn.init.normal_, std=0.001))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, 7, 7) -> logits (N, K + 1) and deltas (N, K, 4)."""
        for conv in self.convs:
            x = F.relu(conv(x))
        x = x.flatten(1)
        for linear in self.linears:
            x = F.relu(linear(x))
        return self.cls(x), self.reg(x).unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """RoI features to one 28×28 mask per class (arXiv 1703.06870)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.logits = nn.Conv2d(channels, num_classes, 1)
        init_layers(
            [*self.convs, self.upsample, self.logits],
            partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, 14, 14) -> logits (N, K, 28, 28)."""
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.logits(F.relu(self.upsample(x)))
