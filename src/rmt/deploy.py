"""The inference form of a network: the same function in fewer and larger operations.

What is folded, exactly (relative difference below 1e-6 in float32):

* batch norm into the convolution or linear layer before it;
* ``x + conv(x)`` into the centre of the depth-wise kernel (CPE, feed-forward);
* LayerScale into the projection before it, the key's scale into the key projection;
* q, k and v into one product;
* q's and k's channels from interleaved pairs to halves, so that the rotation shuffles nothing
  (both are permuted alike: their product is unchanged).
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from rmt.model import (
    Block,
    ConvDownsample,
    ConvStem,
    DepthwiseConv,
    FeedForward,
    Head,
    ManhattanAttention,
)
from rmt.ops import manhattan_attention
from rmt.ops.geometry import rotation

M = TypeVar("M", bound=nn.Module)


class FusedAttention(nn.Module):
    """:class:`rmt.ManhattanAttention` with one product for q, k and v."""

    def __init__(self, attn: ManhattanAttention, scale: Tensor | None) -> None:
        super().__init__()
        self.num_heads, self.head_dim = attn.num_heads, attn.head_dim
        self.angles, self.log_decay = attn.angles, attn.log_decay
        self.decomposed, self.backend = attn.decomposed, attn.backend
        dim = attn.q.in_features
        halves = torch.arange(dim).view(self.num_heads, -1, 2).transpose(1, 2).flatten()
        key_scale = self.head_dim**-0.5
        weights = (attn.q.weight[halves], attn.k.weight[halves] * key_scale, attn.v.weight)
        biases = (attn.q.bias[halves], attn.k.bias[halves] * key_scale, attn.v.bias)
        self.qkv = _linear(torch.cat(weights), torch.cat(biases))
        self.lce = attn.lce
        self.proj = _scaled(attn.proj, scale)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        cos, sin = rotation(*x.shape[1:3], self.angles, device=x.device, dtype=q.dtype)
        cos, sin = cos[..., ::2], sin[..., ::2]  # one angle a pair
        out = manhattan_attention(
            _rotate_halves(self._heads(q), cos, sin),
            _rotate_halves(self._heads(k), cos, sin),
            self._heads(v),
            self.log_decay,
            decomposed=self.decomposed,
            backend=self.backend,
        ).flatten(-2)
        return self.proj(out if self.lce is None else out + self.lce(v))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim))


class FusedFeedForward(nn.Module):
    """:class:`rmt.model.FeedForward` without its inner sum."""

    def __init__(self, mlp: FeedForward, scale: Tensor | None) -> None:
        super().__init__()
        self.fc1 = mlp.fc1
        self.conv = nn.Identity() if mlp.conv is None else _with_identity(mlp.conv)
        self.fc2 = _scaled(mlp.fc2, scale)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.fc2(self.conv(F.gelu(self.fc1(x))))


class FusedBlock(nn.Module):
    """:class:`rmt.model.Block` with two sums instead of four."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.cpe = nn.Identity() if block.cpe is None else _with_identity(block.cpe)
        self.norm1 = block.norm1
        self.attn = FusedAttention(block.attn, getattr(block.ls1, "gamma", None))
        self.norm2 = block.norm2
        self.mlp = FusedFeedForward(block.mlp, getattr(block.ls2, "gamma", None))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = self.cpe(x)
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@torch.no_grad()
def fuse(model: M) -> M:
    """Return a folded copy of a network in eval mode; the original stays as it is.

    Blocks, stems, downsamplings and heads of RMT are folded wherever they are, and in every other
    ``nn.Sequential`` or module that holds a convolution and its batch norm side by side (``conv``
    and ``bn``), such as a dense head's. A folded network is for inference only.

    Args:
        model: a classifier, detector or segmenter of this package.
    """
    fused = copy.deepcopy(model).eval()
    for parent in list(fused.modules()):
        if isinstance(parent, ConvStem):
            _fold_pairs(parent)
        elif isinstance(parent, ConvDownsample):
            parent.conv, parent.norm = fuse_conv_bn_eval(parent.conv, parent.norm), nn.Identity()
        elif isinstance(parent, Head) and isinstance(parent.norm, nn.BatchNorm1d):
            parent.proj, parent.norm = fuse_linear_bn_eval(parent.proj, parent.norm), nn.Identity()
        elif isinstance(getattr(parent, "bn", None), nn.BatchNorm2d):
            parent.conv, parent.bn = fuse_conv_bn_eval(parent.conv, parent.bn), nn.Identity()
        for name, child in parent.named_children():
            if isinstance(child, Block):
                setattr(parent, name, FusedBlock(child))
    return fused.requires_grad_(False)


def _fold_pairs(stem: nn.Sequential) -> None:
    for i in range(len(stem) - 1):
        if isinstance(stem[i], nn.Conv2d) and isinstance(stem[i + 1], nn.BatchNorm2d):
            stem[i], stem[i + 1] = fuse_conv_bn_eval(stem[i], stem[i + 1]), nn.Identity()


def _with_identity(conv: DepthwiseConv) -> DepthwiseConv:
    """Return a convolution that gives ``x + conv(x)``."""
    conv = copy.deepcopy(conv)
    centre = conv.kernel_size[0] // 2
    conv.weight[:, 0, centre, centre] += 1
    return conv


def _scaled(layer: nn.Linear, scale: Tensor | None) -> nn.Linear:
    if scale is None:
        return layer
    return _linear(layer.weight * scale[:, None], layer.bias * scale)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0]).to(weight)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer


def _rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel j with channel j + D/2 by the pair's angle."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
