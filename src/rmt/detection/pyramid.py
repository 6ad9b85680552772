"""The two pyramids of the detectors: FPN with coarser levels on top."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rmt.detection.init import start
from rmt.modeling.necks import FPN


class RetinaPyramid(FPN):
    """P3 to P7 (arXiv 1708.02002): FPN on C3 to C5, and two strided convolutions from C5 on.

    P6 is convolved from the backbone's map, and P7 from P6 without the paper's ReLU, as in the
    release.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256) -> None:
        super().__init__(in_channels[1:], out_channels)
        for dim in (in_channels[-1], out_channels):
            conv = nn.Conv2d(dim, out_channels, 3, stride=2, padding=1)
            start([conv], nn.init.xavier_uniform_)
            self.output.append(conv)  # where the release has them too

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Four maps of the backbone -> five of ``out_channels``, stride 8 to 128."""
        p6 = self.output[-2](maps[-1])
        return [*super().forward(maps[1:]), p6, self.output[-1](p6)]


class RCNNPyramid(FPN):
    """P2 to P6 (arXiv 1612.03144): FPN on all maps; P6, every second cell of P5, is the RPN's."""

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Four maps of the backbone -> five of ``out_channels``, stride 4 to 64."""
        levels = super().forward(maps)
        return [*levels, levels[-1][:, :, ::2, ::2]]
