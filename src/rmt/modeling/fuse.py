"""The inference form of a network: the same function with fewer, larger operations.

What is folded (relative difference below 1e-6 in float32):

* batch norm into the convolution or linear layer before it;
* ``x + conv(x)`` into the centre of the depth-wise kernel (CPE, feed-forward);
* LayerScale into the projection before it, and the scale of the keys into their projection;
* the projections to q, k and v into one.

In a traced graph the channels of q and k are also permuted from interleaved pairs to halves, so
that the rotation, there in real numbers, does not have to shuffle them. Both are permuted in the
same way, so their product is unchanged.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from timm.layers import LayerScale
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from rmt.modeling.layers import (
    Block,
    ConvDownsample,
    DepthwiseConv,
    FeedForward,
    Head,
    ManhattanAttention,
)
from rmt.ops import MapTables, manhattan_attention, map_tables
from rmt.ops.geometry import rotate, rotate_halves
from rmt.ops.tables import traced

M = TypeVar("M", bound=nn.Module)

# Leaves of a torch.fx graph, as in rmt.modeling.layers.
torch.fx.wrap("manhattan_attention")
torch.fx.wrap("map_tables")
torch.fx.wrap("rotate")


class FusedAttention(nn.Module):
    """:class:`rmt.ManhattanAttention` with one projection to q, k and v."""

    def __init__(self, attn: ManhattanAttention, scale: Tensor | None) -> None:
        super().__init__()
        self.num_heads, self.head_dim = attn.num_heads, attn.head_dim
        self.angles, self.log_decay = attn.angles, attn.log_decay
        self.decomposed, self.backend = attn.decomposed, attn.backend
        key_scale = self.head_dim**-0.5
        weights = (attn.q.weight, attn.k.weight * key_scale, attn.v.weight)
        biases = (attn.q.bias, attn.k.bias * key_scale, attn.v.bias)
        self.qkv = _linear(torch.cat(weights), torch.cat(biases))
        self.lce = attn.lce
        self.proj = _scaled(attn.proj, scale)

    def forward(self, x: Tensor, tables: MapTables | None = None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); ``tables`` as for :class:`rmt.ManhattanAttention`."""
        tables = self.tables(x) if tables is None else tables
        weight, bias, turn = self.qkv.weight, self.qkv.bias, rotate
        if traced():
            weight, bias, turn = self._in_halves(weight), self._in_halves(bias), rotate_halves
        dim = self.qkv.in_features
        qk, v = F.linear(x, weight, bias).split((2 * dim, dim), dim=-1)
        qk = turn(qk.unflatten(-1, (2 * self.num_heads, -1)), tables.rotation)
        q, k = qk.chunk(2, dim=3)
        out = manhattan_attention(
            q,
            k,
            v.unflatten(-1, (self.num_heads, -1)),
            self.log_decay,
            decomposed=self.decomposed,
            backend=self.backend,
            bias=tables.bias,
        ).flatten(-2)
        return self.proj(out if self.lce is None else out + self.lce(v))

    def tables(self, x: Tensor) -> MapTables:
        """Do what :meth:`rmt.ManhattanAttention.tables` does."""
        form = {"decomposed": self.decomposed, "backend": self.backend}
        return map_tables(x, self.angles, self.log_decay, **form)

    def _in_halves(self, parameter: Tensor) -> Tensor:
        """Permute the channels of q and k in each head from pairs (2j, 2j+1) to (j, j + D/2)."""
        qk, v = parameter.split((2 * self.qkv.in_features, self.qkv.in_features))
        pairs = qk.unflatten(0, (2 * self.num_heads, self.head_dim // 2, 2))
        return torch.cat((pairs.transpose(1, 2).flatten(0, 2), v))


class FusedFeedForward(nn.Module):
    """:class:`rmt.modeling.layers.FeedForward` without its inner sum."""

    def __init__(self, mlp: FeedForward, scale: Tensor | None) -> None:
        super().__init__()
        self.fc1 = mlp.fc1
        self.conv = nn.Identity() if mlp.conv is None else _with_identity(mlp.conv)
        self.fc2 = _scaled(mlp.fc2, scale)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return self.fc2(self.conv(F.gelu(self.fc1(x))))


class FusedBlock(nn.Module):
    """:class:`rmt.modeling.layers.Block` with two sums instead of four."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.cpe = nn.Identity() if block.cpe is None else _with_identity(block.cpe)
        self.norm1 = block.norm1
        self.attn = FusedAttention(block.attn, _gamma(block.ls1))
        self.norm2 = block.norm2
        self.mlp = FusedFeedForward(block.mlp, _gamma(block.ls2))

    def forward(self, x: Tensor, tables: MapTables | None = None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); ``tables`` as for :class:`rmt.ManhattanAttention`."""
        x = self.cpe(x)
        x = x + self.attn(self.norm1(x), tables)
        return x + self.mlp(self.norm2(x))


@torch.no_grad()
def fuse(model: M) -> M:
    """Return a folded copy of a network, in eval mode; the original is not changed.

    RMT's blocks, downsamplings and heads are folded wherever they are in the network. So is each
    convolution that is followed by a batch norm in an ``nn.Sequential``, or that a module holds as
    ``conv`` next to ``bn``, as the dense heads do. Subclasses of these two layers are left
    alone, because they may do more: timm's batch norm includes an activation. A folded network is
    for inference only.

    Args:
        model: a classifier, detector or segmenter of this package.

    Returns:
        A copy of the same class, without gradients.
    """
    fused = copy.deepcopy(model).eval()
    for parent in list(fused.modules()):
        if isinstance(parent, nn.Sequential):
            for first, second in pairwise([name for name, _ in parent.named_children()]):
                _fold(parent, first, second)
        elif isinstance(parent, ConvDownsample):
            _fold(parent, "conv", "norm")
        elif isinstance(parent, Head):
            _fold(parent, "proj", "norm")
        elif hasattr(parent, "conv") and hasattr(parent, "bn"):
            _fold(parent, "conv", "bn")
        for name, child in parent.named_children():
            if isinstance(child, Block):
                setattr(parent, name, FusedBlock(child))
    return fused.requires_grad_(False)


def _fold(parent: nn.Module, first: str, second: str) -> None:
    """Fold the child ``second`` into the child ``first``, if it is a batch norm after a layer."""
    layer, norm = getattr(parent, first), getattr(parent, second)
    if type(layer) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
        setattr(parent, first, fuse_conv_bn_eval(layer, norm))
    elif type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d:
        setattr(parent, first, fuse_linear_bn_eval(layer, norm))
    else:
        return
    setattr(parent, second, nn.Identity())


def _with_identity(conv: DepthwiseConv) -> DepthwiseConv:
    """Return a convolution that computes ``x + conv(x)``."""
    conv = copy.deepcopy(conv)
    centre = conv.kernel_size[0] // 2
    conv.weight[:, 0, centre, centre] += 1
    return conv


def _gamma(scale: nn.Module) -> Tensor | None:
    return scale.gamma if isinstance(scale, LayerScale) else None


def _scaled(layer: nn.Linear, scale: Tensor | None) -> nn.Linear:
    if scale is None:
        return layer
    return _linear(layer.weight * scale[:, None], layer.bias * scale)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    return layer
