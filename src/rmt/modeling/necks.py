"""What stands between a classifier's body and a dense head: four maps, their norms, the FPN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmt.messages import did_you_mean
from rmt.modeling.registry import create_model
from rmt.modeling.rmt import RMT
from rmt.variants import VARIANTS

STRIDES = (4, 8, 16, 32)


class Backbone(nn.Module):
    """Images to four maps of stride 4, 8, 16 and 32.

    An RMT body gets a LayerNorm (eps 1e-5) on each map, as in the release's downstream models.
    Another timm body is used as it is; its images are filled up with zeros, right and below, to
    whole multiples of 32, and its maps cut to what is left of them.

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
                    f"unknown backbone {name!r}, neither RMT nor timm's{did_you_mean(name, VARIANTS)}"
                )
            self.body = _of_any_size(
                name, in_chans=in_chans, drop_path_rate=drop_path_rate, **options
            )
            features: Any = self.body.feature_info
            info = features.get_dicts()
            indices = [i for i, stage in enumerate(info) if stage["reduction"] in STRIDES]
        strides = tuple(info[i]["reduction"] for i in indices)
        if strides != STRIDES:
            raise ValueError(f"{name} has maps of stride {strides}; dense heads need {STRIDES}")
        self.channels = tuple(info[i]["num_chs"] for i in indices)
        self.norms = nn.ModuleList()
        self._name = name
        self._indices = list(indices)
        if isinstance(self.body, RMT):
            self.body.prune_intermediate_layers(self._indices)
            self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-5) for dim in self.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W), normalised -> four maps (B, Cᵢ, ⌈H/s⌉, ⌈W/s⌉).

        Raises:
            ValueError: if timm's body does not take images of this size.
        """
        if not isinstance(self.body, RMT):
            return self._maps_of_timm(images)
        maps = self.body.forward_intermediates(images, output_fmt="NHWC", intermediates_only=True)
        return [norm(x).permute(0, 3, 1, 2) for norm, x in zip(self.norms, maps, strict=True)]

    def _maps_of_timm(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))
        try:
            maps = self.body(padded)
        except (AssertionError, RuntimeError) as error:
            if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError)):
                raise
            raise ValueError(
                f"{self._name} failed on images of {tuple(padded.shape[1:])}: {error}. Some of "
                "timm's networks take one size, or whole multiples of their windows: resize the "
                "images to that, or choose another backbone"
            ) from error
        maps = [maps[i] for i in self._indices]
        if getattr(self.body, "output_fmt", "NCHW") == "NHWC":  # timm's Swin and kin
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        return [
            x[..., : -(-height // stride), : -(-width // stride)]
            for x, stride in zip(maps, STRIDES, strict=True)
        ]


def _of_any_size(name: str, **options: Any) -> nn.Module:
    """Make a timm body, one of a fixed image size such as Swin so that it takes others."""
    flexible: dict[str, Any] = {"strict_img_size": False} | options
    try:
        return timm.create_model(name, features_only=True, **flexible)
    except TypeError as error:
        if "strict_img_size" not in str(error):
            raise
        return timm.create_model(name, features_only=True, **options)  # it never asks for a size


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
        return [self.output[i](x) for i, x in enumerate(tops)]


def full_precision(tensor: Tensor) -> Tensor:
    """Return half precision as float32 and anything wider as it is: boxes and losses need it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
