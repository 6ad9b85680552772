"""What stands between a classifier's body and a dense head: four maps, their norms, the FPN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch.nn.functional as F
from torch import Tensor, nn

from rmt.model import RMT
from rmt.registry import create_model
from rmt.variants import VARIANTS, nearest

STRIDES = (4, 8, 16, 32)


class Backbone(nn.Module):
    """Images to four maps of stride 4, 8, 16 and 32.

    An RMT body gets a LayerNorm (eps 1e-5) on each map, as in the release's downstream models;
    another timm body is used as it is.

    Args:
        name: a registered RMT variant, or any timm model with four such features.
        in_chans: image channels.
        drop_path_rate: stochastic depth at the last block; None takes the variant's.
        **options: further arguments of the body's factory.

    Attributes:
        channels: width of each map.

    Raises:
        ValueError: if the model is unknown or does not have maps of these strides.
    """

    def __init__(
        self, name: str, *, in_chans: int = 3, drop_path_rate: float | None = None, **options: Any
    ) -> None:
        super().__init__()
        if name.split(".")[0] in VARIANTS:
            self.body = create_model(
                name, 0, in_chans=in_chans, drop_path_rate=drop_path_rate, **options
            )
            info = self.body.feature_info
            indices = range(len(info))
        else:
            if not timm.is_model(name):
                raise ValueError(
                    f"unknown backbone {name!r}, neither RMT nor timm's{nearest(name, VARIANTS)}"
                )
            self.body = timm.create_model(
                name,
                features_only=True,
                in_chans=in_chans,
                drop_path_rate=drop_path_rate,
                **options,
            )
            features: Any = self.body.feature_info
            info = features.get_dicts()
            indices = [i for i, stage in enumerate(info) if stage["reduction"] in STRIDES]
        strides = tuple(info[i]["reduction"] for i in indices)
        if strides != STRIDES:
            raise ValueError(f"{name} has maps of stride {strides}; dense heads need {STRIDES}")
        self.channels = tuple(info[i]["num_chs"] for i in indices)
        self.norms = nn.ModuleList()
        self._indices = list(indices)
        if isinstance(self.body, RMT):
            self.body.prune_intermediate_layers(self._indices)
            self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-5) for dim in self.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W), normalised -> four maps (B, Cᵢ, ⌈H/s⌉, ⌈W/s⌉)."""
        if not isinstance(self.body, RMT):
            maps = self.body(images)
            maps = [maps[i] for i in self._indices]
            last = getattr(self.body, "output_fmt", "NCHW") == "NHWC"  # timm's Swin and kin
            return [x.permute(0, 3, 1, 2) for x in maps] if last else maps
        maps = self.body.forward_intermediates(images, output_fmt="NHWC", intermediates_only=True)
        return [norm(x).permute(0, 3, 1, 2) for norm, x in zip(self.norms, maps, strict=True)]


class FPN(nn.Module):
    """Feature pyramid (arXiv 1612.03144): 1×1 laterals, nearest top-down sums, 3×3 outputs.

    No norm, no activation; a map is enlarged to the size of the next lower one, whatever it is.

    Args:
        in_channels: width of each incoming map, finest first.
        out_channels: width of each outgoing map.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(dim, out_channels, 1) for dim in in_channels)
        self.output = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, padding=1) for _ in in_channels
        )
        for conv in (*self.lateral, *self.output):
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return as many maps of ``out_channels``, finest first."""
        tops = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for i in range(len(tops) - 1, 0, -1):
            tops[i - 1] = tops[i - 1] + F.interpolate(tops[i], size=tops[i - 1].shape[2:])
        # A subclass may keep coarser levels' convolutions behind those of the laterals.
        return [output(x) for output, x in zip(self.output, tops, strict=False)]
