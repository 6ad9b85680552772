"""RMT: stem, Manhattan self-attention, feed-forward, block, stages, head.

The network of "RMT: Retentive Networks Meet Vision Transformers" (CVPR 2024, arXiv 2309.11523)
as its authors' weights need it. Maps are channels last, (B, H, W, C), inside; images and the
feature maps handed out are (B, C, H, W). Parameter names follow timm.

What timm asks of a backbone besides lies in :mod:`rmt.modeling.rmt`. One file, longer than others here,
so that the whole paper can be read in its order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from rmt.ops import BACKENDS, manhattan_attention
from rmt.ops.geometry import log_decay_rates, rotate, rotation_angles
from rmt.variants import Variant

LAYER_SCALE_INIT = 1e-6


NORM_EPS = 1e-6


class DepthwiseConv(nn.Conv2d):
    """A k×k depth-wise convolution with padding on a channels-last map (B, H, W, C)."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolved map, (B, H, W, C)."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvStem(nn.Sequential):
    """Image (B, 3, H, W) to a map (B, H/4, W/4, C): four 3×3 convolutions (paper, fig. 3)."""

    def __init__(self, in_chans: int, dim: int) -> None:
        half = dim // 2
        super().__init__(
            nn.Conv2d(in_chans, half, 3, stride=2, padding=1),
            nn.BatchNorm2d(half),
            nn.GELU(),
            nn.Conv2d(half, half, 3, padding=1),
            nn.BatchNorm2d(half),
            nn.GELU(),
            nn.Conv2d(half, dim, 3, stride=2, padding=1),
            nn.BatchNorm2d(dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 3, padding=1),
            nn.BatchNorm2d(dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the stride-4 map, channels last; sizes round up."""
        return super().forward(x).permute(0, 2, 3, 1)


class PatchStem(nn.Module):
    """Image to patches by one strided convolution and a LayerNorm (Table 6, no conv stem)."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map, channels last; an incomplete last patch is filled with zeros."""
        # The stride leaves what is not needed of the padding; so the size stays a plain symbol.
        missing = self.proj.stride[0] - 1
        x = F.pad(x, (0, missing, 0, missing))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class ManhattanAttention(nn.Module):
    """Manhattan self-attention (eq. 3-8): a plug-in for any network with maps (B, H, W, C).

    ``softmax(rot(q) · rot(k·D^-½)ᵀ + |Δ| · log γ) v``, plus a 5×5 depth-wise convolution of v
    (LCE, eq. 7), then the output projection. It keeps the map's size and has no parameter that
    depends on it.

    Args:
        dim: channels C of the map.
        num_heads: N; ``dim / num_heads`` must be even.
        decomposed: rows then columns (eq. 6) instead of all pairs.
        decay_max: b of eq. 8; larger lets the last heads see farther.
        decay: False for plain softmax attention.
        lce: local context enhancement.
        backend: a kernel of :data:`rmt.ops.BACKENDS`, or None to choose by static facts.

    Raises:
        ValueError: if ``dim`` does not split into heads of even width, or for an unknown backend.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        decomposed: bool = True,
        *,
        decay_max: float = 8.0,
        decay: bool = True,
        lce: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads or (dim // num_heads) % 2:
            raise ValueError(
                f"{dim} channels on {num_heads} heads: the head width must be a whole even number"
            )
        if backend is not None and backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.decomposed = decomposed
        self.backend = backend
        # Plain numbers, not buffers: no cast or meta device can damage them.
        self.angles = rotation_angles(self.head_dim)
        self.log_decay = log_decay_rates(num_heads, decay_max) if decay else None
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.lce = DepthwiseConv(dim, 5) if lce else None
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended map, (B, H, W, C) as the input.

        Raises:
            ValueError: if ``x`` has not four axes or not ``dim`` channels.
        """
        if x.ndim != 4 or x.shape[-1] != self.q.in_features:
            raise ValueError(
                f"expected a map (B, H, W, {self.q.in_features}), got {tuple(x.shape)}"
            )
        q, k = self.queries_and_keys(x)
        v = self.v(x)
        out = manhattan_attention(
            q, k, self.heads(v), self.log_decay, decomposed=self.decomposed, backend=self.backend
        ).flatten(-2)
        if self.lce is not None:
            out = out + self.lce(v)
        return self.proj(out)

    def queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return rotated queries and rotated, scaled keys, each (B, H, W, N, D)."""
        q, k = self.heads(self.q(x)), self.heads(self.k(x) * self.head_dim**-0.5)
        return rotate(q, self.angles), rotate(k, self.angles)

    def heads(self, x: Tensor) -> Tensor:
        """Split channels into heads: (B, H, W, C) -> (B, H, W, N, D)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim))


class FeedForward(nn.Module):
    """fc1, GELU, h + 3×3 depth-wise convolution of h (release only), fc2."""

    def __init__(self, dim: int, hidden: int, conv: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.conv = DepthwiseConv(hidden, 3) if conv else None
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the input's shape, (B, H, W, C)."""
        x = F.gelu(self.fc1(x))
        if self.conv is not None:
            x = x + self.conv(x)
        return self.fc2(x)


class Block(nn.Module):
    """One RMT block (paper, fig. 3): positional convolution, attention, feed-forward."""

    def __init__(self, variant: Variant, stage: int, drop_path: float) -> None:
        super().__init__()
        dim, heads = variant.dims[stage], variant.heads[stage]

        def scale() -> nn.Module:
            return (
                LayerScale(dim, LAYER_SCALE_INIT) if variant.layer_scale[stage] else nn.Identity()
            )

        self.cpe = DepthwiseConv(dim, 3) if variant.cpe else None
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = ManhattanAttention(
            dim,
            heads,
            decomposed=not variant.full_attention[stage],
            decay_max=variant.decay_max[stage],
            decay=variant.decay,
            lce=variant.lce,
        )
        self.ls1 = scale()
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = FeedForward(dim, int(dim * variant.mlp_ratios[stage]), variant.mlp_conv)
        self.ls2 = scale()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the input's shape, (B, H, W, C)."""
        if self.cpe is not None:
            x = x + self.cpe(x)
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class ConvDownsample(nn.Module):
    """Halve the map, rounding up: 3×3 convolution of stride 2 and batch norm."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ⌈H/2⌉, ⌈W/2⌉, C')."""
        return self.norm(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class MergeDownsample(nn.Module):
    """Halve the map by joining 2×2 tokens (Swin, arXiv 2103.14030; Table 6's bodies)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=NORM_EPS)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ⌈H/2⌉, ⌈W/2⌉, C'); an odd edge is filled with zeros."""
        # Windows of two rows and two columns; the last is used where the edge is odd.
        x = F.pad(x, (0, 0, 0, 1, 0, 1)).unfold(1, 2, 2).unfold(2, 2, 2)  # (B, h, w, C, 2, 2)
        return self.reduction(self.norm(x.permute(0, 1, 2, 5, 4, 3).flatten(3)))


class Stage(nn.Module):
    """Downsampling (from the second stage on), then the stage's blocks."""

    def __init__(self, variant: Variant, stage: int, drop_path: Sequence[float]) -> None:
        super().__init__()
        down = ConvDownsample if variant.downsample == "conv" else MergeDownsample
        self.downsample = (
            down(variant.dims[stage - 1], variant.dims[stage]) if stage else nn.Identity()
        )
        self.blocks = nn.ModuleList(Block(variant, stage, rate) for rate in drop_path)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the stage's map, (B, H, W, C) of its own size and width."""
        x = self.downsample(x)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x)
            else:
                x = block(x)
        return x


class Head(nn.Module):
    """From the last map to logits.

    The release: Linear, batch norm and SiLU on every token, mean over tokens, Linear. With
    ``hidden=0`` (Table 6's bodies): LayerNorm on every token, mean over tokens, Linear.
    """

    def __init__(
        self, dim: int, hidden: int, num_classes: int, global_pool: str, drop_rate: float
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, hidden) if hidden else nn.Identity()
        self.norm = nn.BatchNorm1d(hidden) if hidden else nn.LayerNorm(dim, eps=NORM_EPS)
        self.num_features = hidden or dim
        self.drop_rate = drop_rate
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str) -> None:
        """Make a new classifier; 0 classes give features instead of logits."""
        if global_pool not in ("avg", ""):
            raise ValueError(f"global_pool is {global_pool!r}; RMT knows 'avg' and '' (no pooling)")
        self.global_pool = global_pool
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def tokens(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, hidden): what is averaged before the classifier."""
        if isinstance(self.norm, nn.LayerNorm):
            return self.norm(x)
        x = self.proj(x)
        return F.silu(self.norm(x.flatten(0, 2)).view_as(x))

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, H, W, C) -> logits (B, classes), or a map (B, hidden or classes, H, W) unpooled."""
        x = self.tokens(x)
        if self.global_pool:
            x = x.mean(dim=(1, 2))
        if not pre_logits:
            x = self.fc(F.dropout(x, self.drop_rate, self.training))
        return x if self.global_pool else x.permute(0, 3, 1, 2)
