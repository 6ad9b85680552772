"""The paper: stem, Manhattan self-attention, feed-forward, block, downsampling, stage, head.

The layers of "RMT: Retentive Networks Meet Vision Transformers" (CVPR 2024, arXiv 2309.11523), in
the order of its figure 3, and what its authors' weights need in addition (marked "release").

    image (B, 3, H, W) -> stem -> four stages of stride 4, 8, 16 and 32 -> head -> logits
    stage: downsampling (from the second on), then blocks
    block: x + CPE(x), then x + MaSA(norm(x)), then x + FFN(norm(x))

B images, H and W the size of a map in tokens, C channels, N heads, D = C/N the key width. Maps are
channels last, (B, H, W, C); only the stem reads (B, C, H, W), and only an unpooled head returns it.
Each layer takes maps of any size, and parameter names follow timm. The network made of these layers
is in :mod:`rmt.modeling.rmt`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, trunc_normal_
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from rmt.ops import BACKENDS, MapTables, manhattan_attention, map_tables
from rmt.ops.geometry import log_decay_rates, rotate, rotation_angles
from rmt.variants import Variant

LAYER_SCALE_INIT = 1e-6
NORM_EPS = 1e-6

# Leaves of a torch.fx graph: they look at sizes, which its trace does not know.
torch.fx.wrap("check_map")
torch.fx.wrap("manhattan_attention")
torch.fx.wrap("map_tables")
torch.fx.wrap("rotate")


def check_map(x: Tensor, dim: int) -> Tensor:
    """Return ``x`` if it is a map (B, H, W, ``dim``); otherwise raise ``ValueError``."""
    if x.ndim != 4 or x.shape[-1] != dim:
        raise ValueError(f"expected a map (B, H, W, {dim}), got {tuple(x.shape)}")
    return x


class DepthwiseConv(nn.Conv2d):
    """A k×k depth-wise convolution on a channels-last map, padded to keep the map's size.

    Figure 3 has it as CPE (3×3) and LCE (5×5), the release also inside the feed-forward (3×3).
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ConvStem(nn.Sequential):
    """The stem: four 3×3 convolutions from the image to a map of stride 4 (fig. 3)."""

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
        """(B, 3, H, W) in pixels -> (B, ⌈H/4⌉, ⌈W/4⌉, C)."""
        return super().forward(x).permute(0, 2, 3, 1)


class PatchStem(nn.Module):
    """The stem of Table 6: one convolution over patches and a LayerNorm."""

    def __init__(self, in_chans: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in pixels -> (B, ⌈H/s⌉, ⌈W/s⌉, C); incomplete patches are zero-padded."""
        # Always padded by stride - 1, so that the size stays one symbol in a traced graph; the
        # convolution ignores padding that does not complete a patch.
        missing = self.proj.stride[0] - 1
        x = F.pad(x, (0, missing, 0, missing))
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class ManhattanAttention(nn.Module):
    """Manhattan self-attention, MaSA (eq. 4-8): a plug-in for any network with maps (B, H, W, C).

    ``softmax(rot(q) · rot(k·D^-½)ᵀ + |Δ| · log γ) v``, plus a 5×5 depth-wise convolution of v
    (LCE, eq. 7), then the output projection. |Δ| is the Manhattan distance of two tokens on the
    map (eq. 4) and γ the decay rate of the head (eq. 8). The rotation is RetNet's, by the token's
    index in the flattened map (release). No parameter depends on the map's size.

    Args:
        dim: C, the channels of the map.
        num_heads: N; ``dim / num_heads`` must be an even integer.
        decomposed: attend along rows, then along columns (eq. 6), instead of over the whole map
            (eq. 5).
        decay_max: b of eq. 8; with a larger one the last heads see farther.
        decay: False for plain softmax attention (ablation of Table 6).
        lce: local context enhancement (eq. 7).
        backend: a kernel of :data:`rmt.ops.BACKENDS`; None chooses one.

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
                f"{dim} channels on {num_heads} heads: dim / num_heads must be an even integer"
            )
        if backend is not None and backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.decomposed = decomposed
        self.backend = backend
        # Plain numbers, not buffers: neither a cast nor the meta device can damage them.
        self.angles = rotation_angles(self.head_dim)
        self.log_decay = log_decay_rates(num_heads, decay_max) if decay else None
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.lce = DepthwiseConv(dim, 5) if lce else None
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, tables: MapTables | None = None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C).

        Args:
            x: the map.
            tables: :meth:`tables` of a map of this size, if several modules share them.

        Raises:
            ValueError: if ``x`` does not have four axes and ``dim`` channels.
        """
        x = check_map(x, self.q.in_features)
        tables = self.tables(x) if tables is None else tables
        q, k = self.queries_and_keys(x, tables)
        v = self.v(x)
        out = manhattan_attention(
            q,
            k,
            self.heads(v),
            self.log_decay,
            decomposed=self.decomposed,
            backend=self.backend,
            bias=tables.bias,
        ).flatten(-2)
        if self.lce is not None:
            out = out + self.lce(v)
        return self.proj(out)

    def tables(self, x: Tensor) -> MapTables:
        """Return what the attention takes from the size of the map ``x``, (B, H, W, C)."""
        form = {"decomposed": self.decomposed, "backend": self.backend}
        return map_tables(x, self.angles, self.log_decay, **form)

    def queries_and_keys(self, x: Tensor, tables: MapTables) -> tuple[Tensor, Tensor]:
        """(B, H, W, C) -> rotated queries, and scaled and rotated keys, each (B, H, W, N, D)."""
        q, k = self.heads(self.q(x)), self.heads(self.k(x) * self.head_dim**-0.5)
        return rotate(q, tables.rotation), rotate(k, tables.rotation)

    def heads(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, N, D)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim))


class FeedForward(nn.Module):
    """The feed-forward network, FFN (fig. 3): h = GELU(fc1(x)), then fc2(h + conv(h)).

    The 3×3 depth-wise convolution is the release's; the paper has fc2(h).

    Args:
        dim: C, the channels of the map.
        hidden: channels of h.
        conv: with the convolution.
    """

    def __init__(self, dim: int, hidden: int, conv: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.conv = DepthwiseConv(hidden, 3) if conv else None
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        x = F.gelu(self.fc1(x))
        if self.conv is not None:
            x = x + self.conv(x)
        return self.fc2(x)


class Block(nn.Module):
    """One RMT block (fig. 3): CPE, then MaSA and FFN with LayerNorm before each.

    CPE is the conditional positional encoding: x plus its own 3×3 depth-wise convolution.

    Args:
        variant: the architecture.
        stage: index of the block's stage, from 0.
        drop_path: probability that a residual branch is dropped in training (stochastic depth).
    """

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

    def forward(self, x: Tensor, tables: MapTables | None = None) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); ``tables`` as for :class:`ManhattanAttention`."""
        if self.cpe is not None:
            x = x + self.cpe(x)
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), tables)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class ConvDownsample(nn.Module):
    """Downsampling between stages (fig. 3): a 3×3 convolution of stride 2 and batch norm."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ⌈H/2⌉, ⌈W/2⌉, C')."""
        return self.norm(self.conv(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class MergeDownsample(nn.Module):
    """Downsampling of Table 6: Swin's patch merging, 2×2 tokens into one (arXiv 2103.14030)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim, eps=NORM_EPS)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ⌈H/2⌉, ⌈W/2⌉, C'); odd sizes are zero-padded."""
        # Windows of two rows and two columns; the padding is only used where the size is odd.
        x = F.pad(x, (0, 0, 0, 1, 0, 1)).unfold(1, 2, 2).unfold(2, 2, 2)  # (B, h, w, C, 2, 2)
        return self.reduction(self.norm(x.permute(0, 1, 2, 5, 4, 3).flatten(3)))


class Stage(nn.Module):
    """One of the four stages (fig. 3): downsampling, from the second stage on, then the blocks.

    Args:
        variant: the architecture.
        stage: index of the stage, from 0.
        drop_path: stochastic depth of each block; its length is the number of blocks.
    """

    def __init__(self, variant: Variant, stage: int, drop_path: Sequence[float]) -> None:
        super().__init__()
        down = ConvDownsample if variant.downsample == "conv" else MergeDownsample
        self.downsample = (
            down(variant.dims[stage - 1], variant.dims[stage]) if stage else nn.Identity()
        )
        self.blocks = nn.ModuleList(Block(variant, stage, rate) for rate in drop_path)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ⌈H/2⌉, ⌈W/2⌉, C'); the first stage keeps size and channels."""
        x = self.downsample(x)
        first: Any = self.blocks[0]  # a block or its fused form
        tables = first.attn.tables(x)  # once for all blocks, in traced graphs too
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, tables)
            else:
                x = block(x, tables)
        return x


class Head(nn.Module):
    """The classifier on the last map (release; the paper does not describe it).

    Linear, batch norm and SiLU on each token, the mean over tokens, Linear. With ``hidden=0``
    (Table 6): LayerNorm on each token, the mean over tokens, Linear.

    Args:
        dim: C, the channels of the last map.
        hidden: width between the two linear layers; 0 leaves the first out.
        num_classes: 0 gives features instead of logits.
        global_pool: ``"avg"``, or ``""`` for logits of each token.
        drop_rate: dropout before the last linear layer.

    Raises:
        ValueError: for another ``global_pool``.
    """

    def __init__(
        self, dim: int, hidden: int, num_classes: int, global_pool: str, drop_rate: float
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, hidden) if hidden else nn.Identity()
        self.norm: nn.Module = nn.BatchNorm1d(hidden) if hidden else nn.LayerNorm(dim, eps=NORM_EPS)
        self.num_features = hidden or dim
        self.drop_rate = drop_rate
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str) -> None:
        """Replace the last linear layer; with 0 classes the head gives features, not logits.

        Raises:
            ValueError: for a ``global_pool`` other than ``"avg"`` and ``""``.
        """
        if global_pool not in ("avg", ""):
            raise ValueError(f"global_pool is {global_pool!r}; choose 'avg', or '' for no pooling")
        self.global_pool = global_pool
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def tokens(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, hidden): the features that are averaged over tokens."""
        if isinstance(self.norm, nn.LayerNorm):
            return self.norm(x)
        x = self.proj(x)
        return F.silu(self.norm(x.flatten(0, 2)).view_as(x))

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, H, W, C) -> logits (B, classes); unpooled -> (B, classes, H, W).

        With ``pre_logits`` it returns the hidden features instead, of the same layout.
        """
        x = self.tokens(x)
        if self.global_pool:
            x = x.mean(dim=(1, 2))
        if not pre_logits:
            x = self.fc(F.dropout(x, self.drop_rate, self.training))
        return x if self.global_pool else x.permute(0, 3, 1, 2)


def init_linear(module: nn.Module, name: str = "") -> None:
    """Initialise a linear layer as the release does: truncated normal of deviation 0.02, bias 0.

    Other layers keep PyTorch's own initialisation. ``name`` is what timm's ``named_apply`` passes.
    """
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
