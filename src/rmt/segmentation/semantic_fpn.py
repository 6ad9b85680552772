"""The head of Semantic FPN (arXiv 1901.02446): all levels are upsampled to stride 4 and added."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from rmt.modeling.necks import FPN
from rmt.segmentation.blocks import ConvNormReLU, Head, PixelClassifier, resize


class UpsampleBlock(nn.ModuleList):
    """A 3×3 convolution and upsampling by 2, ``steps`` times; with 0 steps, one convolution."""

    def __init__(self, in_channels: int, channels: int, *, steps: int) -> None:
        super().__init__(
            ConvNormReLU(in_channels if i == 0 else channels, channels)
            for i in range(max(1, steps))
        )
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H · 2^steps, W · 2^steps)."""
        for conv in self:
            x = conv(x)
            if self.steps:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return x


class SemanticFPNHead(nn.Module):
    """Four pyramid levels to logits at stride 4.

    A level of stride 8, 16 or 32 is upsampled by 2 once, twice or three times, and then resized to
    the exact size of the finest level (for odd sizes it is larger).

    Args:
        in_channels: channels of each level.
        num_classes: K.
        channels: of the head.
    """

    def __init__(self, in_channels: int, num_classes: int, *, channels: int = 128) -> None:
        super().__init__()
        self.levels = nn.ModuleList(UpsampleBlock(in_channels, channels, steps=i) for i in range(4))
        self.classifier = PixelClassifier(channels, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps (B, C, Hᵢ, Wᵢ), finest first -> (B, K, H₀, W₀)."""
        total = self.levels[0](maps[0])
        for level, x in zip(self.levels[1:], maps[1:], strict=True):
            total = total + resize(level(x), total.shape[2:])
        return self.classifier(total)


def _build(
    dims: Sequence[int], num_classes: int, channels: int
) -> tuple[nn.Module, nn.Module, nn.Module | None]:
    neck = FPN(dims, 2 * channels)
    return neck, SemanticFPNHead(2 * channels, num_classes, channels=channels), None


HEAD = Head(channels=128, build=_build)
