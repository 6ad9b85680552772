"""Building blocks of the segmentation heads: convolution with batch norm, classifier, resizing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DROP_RATE = 0.1


@dataclass(frozen=True)
class Head:
    """A kind of segmentation head.

    Attributes:
        channels: its width as published.
        build: (channels of the four maps, number of classes, width) -> neck, head and, for
            training, an auxiliary head on the third map or None.
    """

    channels: int
    build: Callable[[Sequence[int], int, int], tuple[nn.Module, nn.Module, nn.Module | None]]


class ConvNormReLU(nn.Module):
    """A k×k convolution without bias, batch norm and ReLU; the size of the map stays the same."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel_size: int = 3) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        return F.relu(self.bn(self.conv(x)))


class PixelClassifier(nn.Sequential):
    """Dropout of channels, then a 1×1 convolution to one logit per class."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.drop = nn.Dropout2d(DROP_RATE)
        self.conv = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.conv.weight, std=0.01)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (B, C, H, W) to ``size`` (h, w), bilinearly, with corners not aligned."""
    # Sizes may be symbolic in a traced graph; there, resizing to the same size changes nothing.
    if not torch.compiler.is_compiling() and x.shape[2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
