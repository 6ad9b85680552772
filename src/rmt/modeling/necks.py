"""Between backbone and dense head: four maps, their norms, and the FPN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    An RMT gets a LayerNorm (eps 1e-5) on each map, as in the release's downstream models. Other
    models of timm are used as they are: images are zero-padded on the right and at the bottom to
    multiples of 32, and the maps are cropped to the part that belongs to the image.

    Args:
        name: an RMT variant, or any model of timm with maps of these strides.
        in_chans: image channels.
        drop_path_rate: stochastic depth at the last block; None takes the model's own.
        **options: further arguments of :func:`rmt.create_model` or ``timm.create_model``.

    Attributes:
        body: the network that computes the maps.
        channels: number of channels of each map, finest first.

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
                hint = did_you_mean(name, VARIANTS)
                raise ValueError(
                    f"unknown backbone {name!r}: neither an RMT variant nor a model of timm{hint}"
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
        """Images (B, C, H, W), normalised -> four maps (B, Cᵢ, ⌈H/s⌉, ⌈W/s⌉), finest first.

        Raises:
            ValueError: if a model of timm does not take images of this size.
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
                f"{self._name} failed on images of {tuple(padded.shape[1:])}: {error}. Some "
                "models of timm take images of one size only, or multiples of their window size: "
                "resize the images to that, or choose another backbone"
            ) from error
        maps = [maps[i] for i in self._indices]
        if getattr(self.body, "output_fmt", "NCHW") == "NHWC":  # such as timm's Swin
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        return [
            x[..., : -(-height // stride), : -(-width // stride)]
            for x, stride in zip(maps, STRIDES, strict=True)
        ]


def _of_any_size(name: str, **options: Any) -> nn.Module:
    """Create a model of timm that takes images of any size, even if it has a fixed one."""
    flexible: dict[str, Any] = {"strict_img_size": False} | options
    try:
        return timm.create_model(name, features_only=True, **flexible)
    except TypeError as error:
        if "strict_img_size" not in str(error):
            raise
        # A model without that argument does not depend on the size.
        return timm.create_model(name, features_only=True, **options)


class FPN(nn.Module):
    """Feature pyramid network (arXiv 1612.03144): 1×1 laterals, top-down sums, 3×3 outputs.

    Without norm and activation. Each map is resized (nearest) to the size of the next finer one,
    which need not be twice its own.

    Args:
        in_channels: number of channels of each input map, finest first.
        out_channels: number of channels of each output map.
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
        """Maps (B, Cᵢ, Hᵢ, Wᵢ), finest first -> maps (B, ``out_channels``, Hᵢ, Wᵢ)."""
        tops = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for i in range(len(tops) - 1, 0, -1):
            tops[i - 1] = tops[i - 1] + F.interpolate(tops[i], size=tops[i - 1].shape[2:])
        # A subclass may have further outputs, for coarser levels, after those of the laterals.
        return [self.output[i](x) for i, x in enumerate(tops)]


def without_download(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a backbone's options without ``pretrained``, for a model's ``config``.

    A model that is read from a file gets its weights from there and must not download others.
    """
    return {key: value for key, value in options.items() if key != "pretrained"}


def full_precision(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 or wider, as boxes and losses need it."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
