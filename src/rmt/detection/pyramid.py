"""The feature pyramids of the detectors: FPN and coarser levels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rmt.detection.init import init_layers
from rmt.modeling.necks import FPN


class RetinaPyramid(FPN):
    """P3 to P7 (arXiv 1708.02002): FPN on C3 to C5, then two convolutions of stride 2.

    As in the release, P6 is computed from C5, the backbone's map, and P7 from P6 without the ReLU
    of the paper.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256) -> None:
        super().__init__(in_channels[1:], out_channels)
        for dim in (in_channels[-1], out_channels):
            conv = nn.Conv2d(dim, out_channels, 3, stride=2, padding=1)
            init_layers([conv], nn.init.xavier_uniform_)
            self.output.append(conv)  # the release has them in the same list

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Four maps of the backbone -> five of ``out_channels``, of stride 8 to 128."""
        p6 = self.output[-2](maps[-1])
        return [*super().forward(maps[1:]), p6, self.output[-1](p6)]


class RCNNPyramid(FPN):
    """P2 to P6 (arXiv 1612.03144): FPN on C2 to C5; P6 is P5 subsampled by 2, for the RPN."""

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Four maps of the backbone -> five of ``out_channels``, of stride 4 to 64."""
        levels = super().forward(maps)
        return [*levels, levels[-1][:, :, ::2, ::2]]
