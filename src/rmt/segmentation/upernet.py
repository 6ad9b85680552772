"""The head of UperNet (arXiv 1807.10221), and the auxiliary head used in its training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmt.segmentation.blocks import ConvNormReLU, Head, PixelClassifier, resize

POOL_SIZES = (1, 2, 3, 6)


class PyramidPooling(nn.Module):
    """Pyramid pooling: a map and its averages over 1, 4, 9 and 36 regions (arXiv 1612.01105)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.pooled = nn.ModuleList(
            ConvNormReLU(in_channels, channels, kernel_size=1) for _ in POOL_SIZES
        )
        self.join = ConvNormReLU(in_channels + len(POOL_SIZES) * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W).

        Raises:
            ValueError: in training with one image, whose average has no batch statistics.
        """
        norm = cast(ConvNormReLU, self.pooled[0]).bn
        if norm.training and type(norm) is nn.BatchNorm2d and x.shape[0] == 1:
            raise ValueError(
                "UperNet cannot batch-normalise the average of 1 image; train with at least 2 "
                "images per device, or convert the model to SyncBatchNorm"
            )
        averages = [
            resize(conv(average_pool(x, size)), x.shape[2:])
            for size, conv in zip(POOL_SIZES, self.pooled, strict=True)
        ]
        return self.join(torch.cat([x, *averages], dim=1))


def average_pool(x: Tensor, cells: int) -> Tensor:
    """Return the averages of a map (B, C, H, W) over ``cells`` × ``cells`` regions of equal size.

    In a graph that is exported, as weighted sums: ONNX has no pooling into so many regions of a map
    whose size is not known. A matrix product asks of torch what it cannot prove of such a size.
    """
    if not torch.compiler.is_exporting():
        return F.adaptive_avg_pool2d(x, cells)
    rows, columns = (_weights(side, cells, x) for side in x.shape[2:])
    by_row = (x[:, :, None] * rows[:, :, None]).sum(dim=3)  # (B, C, cells, W)
    return (by_row[:, :, :, None] * columns).sum(dim=4)


def _weights(length: int, cells: int, like: Tensor) -> Tensor:
    """Return the weight (cells, length) of each position in the average of each region."""
    at = torch.arange(length, device=like.device)
    cell = torch.arange(cells, device=like.device)[:, None]
    first, behind = cell * length // cells, -(-(cell + 1) * length // cells)
    inside = ((at >= first) & (at < behind)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


class UperNetHead(nn.Module):
    """Pyramid pooling of the coarsest map, an FPN, and all levels concatenated at stride 4.

    Args:
        in_channels: channels of each backbone map, finest first.
        num_classes: K.
        channels: of the head.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, channels: int = 512
    ) -> None:
        super().__init__()
        *lower, top = in_channels
        self.pyramid = PyramidPooling(top, channels)
        self.lateral = nn.ModuleList(ConvNormReLU(dim, channels, kernel_size=1) for dim in lower)
        self.output = nn.ModuleList(ConvNormReLU(channels, channels) for _ in lower)
        self.join = ConvNormReLU(len(in_channels) * channels, channels)
        self.classifier = PixelClassifier(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps (B, Cᵢ, Hᵢ, Wᵢ), finest first -> (B, K, H₀, W₀)."""
        *lower, top = maps
        tops = [lateral(x) for lateral, x in zip(self.lateral, lower, strict=True)]
        tops.append(self.pyramid(top))
        for i in range(len(tops) - 1, 0, -1):
            tops[i - 1] = tops[i - 1] + resize(tops[i], tops[i - 1].shape[2:])
        levels = [output(x) for output, x in zip(self.output, tops[:-1], strict=True)]
        levels.append(tops[-1])
        size = levels[0].shape[2:]
        joined = torch.cat([levels[0], *(resize(x, size) for x in levels[1:])], dim=1)
        return self.classifier(self.join(joined))


class AuxiliaryHead(nn.Module):
    """One 3×3 convolution and a classifier on the stride-16 map (FCN, arXiv 1411.4038)."""

    def __init__(self, in_channels: int, num_classes: int, *, channels: int = 256) -> None:
        super().__init__()
        self.conv = ConvNormReLU(in_channels, channels)
        self.classifier = PixelClassifier(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K, H, W)."""
        return self.classifier(self.conv(x))


def _build(
    dims: Sequence[int], num_classes: int, channels: int
) -> tuple[nn.Module, nn.Module, nn.Module | None]:
    head = UperNetHead(dims, num_classes, channels=channels)
    return nn.Identity(), head, AuxiliaryHead(dims[2], num_classes, channels=channels // 2)


HEAD = Head(channels=512, build=_build)
