"""The architecture table: every RMT variant as one frozen record, each row written in full.

Sources: arXiv 2309.11523 v6, tables 1 and 6; the release of June 2024 for what its published
weights need (full attention in stage 3 of RMT-T, decay ranges, LayerScale). This module does not
import torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from rmt.messages import did_you_mean


@dataclass(frozen=True)
class Published:
    """Numbers printed in the paper for one variant (published, not measured here).

    Attributes:
        params: parameters in millions, as rounded in the paper.
        gflops: the paper's unit, fvcore multiply-accumulates at 224² divided by 1024³.
        top1: ImageNet-1K top-1 accuracy in percent.
        top1_token_labels: the same with token labelling (the starred row), if there is one.
        params_token_labels: parameters of that row in millions.
    """

    params: float
    gflops: float
    top1: float
    top1_token_labels: float | None = None
    params_token_labels: float | None = None


@dataclass(frozen=True)
class Variant:
    """The architecture of one RMT; tuples have one entry per stage.

    The defaults, from ``stem`` to ``head_hidden``, are the release's: the same for RMT-T, S, B
    and L.

    Attributes:
        name: of this model, or of the registered one that it was derived from.
        depths: number of blocks.
        dims: number of channels.
        heads: number of attention heads; the key width is ``dims / heads``.
        mlp_ratios: hidden width of the feed-forward divided by the number of channels.
        decay_max: b of eq. 8; the exponents of the decay rates run from 2 to b.
        full_attention: True for full MaSA (eq. 5), False for the decomposed form (eq. 6).
        layer_scale: True where both residual branches have LayerScale (initial value 1e-6).
        drop_path_rate: stochastic depth at the last block in training.
        stem: ``"conv"`` (four 3×3 convolutions, stride 4) or ``"patch"`` (one strided convolution).
        patch_size: stride of the patch stem, in pixels; the convolutional stem always has 4.
        downsample: ``"conv"`` (3×3, stride 2, batch norm) or ``"merge"`` (Swin's patch merging).
        decay: False replaces MaSA by plain softmax attention (ablation of Table 6).
        lce: 5×5 depth-wise convolution of the values (eq. 7).
        cpe: 3×3 depth-wise positional convolution at the start of each block.
        mlp_conv: 3×3 depth-wise convolution inside the feed-forward (release only).
        head_hidden: width between backbone and classifier; 0 for LayerNorm and a linear layer.
        published: the paper's row; None for a variant of this project.
    """

    name: str
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    heads: tuple[int, ...]
    mlp_ratios: tuple[float, ...]
    decay_max: tuple[float, ...]
    full_attention: tuple[bool, ...]
    layer_scale: tuple[bool, ...]
    drop_path_rate: float
    stem: Literal["conv", "patch"] = "conv"
    patch_size: int = 4
    downsample: Literal["conv", "merge"] = "conv"
    decay: bool = True
    lce: bool = True
    cpe: bool = True
    mlp_conv: bool = True
    head_hidden: int = 1024
    published: Published | None = None

    def __post_init__(self) -> None:
        per_stage = ("dims", "heads", "mlp_ratios", "decay_max", "full_attention", "layer_scale")
        for name in per_stage:
            value = getattr(self, name)
            if len(value) != len(self.depths):
                raise ValueError(
                    f"{name} has {len(value)} entries for {len(self.depths)} stages: {value}"
                )
        for name, known in (("stem", ("conv", "patch")), ("downsample", ("conv", "merge"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose {' or '.join(known)}")
        for dim, heads in zip(self.dims, self.heads, strict=True):
            if heads < 1 or dim % heads or (dim // heads) % 2:
                raise ValueError(
                    f"{dim} channels on {heads} heads: channels per head must be an even integer, "
                    "because channels are rotated in pairs"
                )

    @property
    def reductions(self) -> tuple[int, ...]:
        """Stride of each stage's map with respect to the image."""
        first = 4 if self.stem == "conv" else self.patch_size
        return tuple(first * 2**i for i in range(len(self.depths)))


RMT_T = Variant(
    name="rmt_t",
    depths=(2, 2, 8, 2),
    dims=(64, 128, 256, 512),
    heads=(4, 4, 8, 16),
    mlp_ratios=(3, 3, 3, 3),
    decay_max=(6, 6, 8, 8),
    full_attention=(False, False, True, True),
    layer_scale=(False, False, False, False),
    drop_path_rate=0.1,
    published=Published(14, 2.5, 82.4),
)


RMT_S = Variant(
    name="rmt_s",
    depths=(3, 4, 18, 4),
    dims=(64, 128, 256, 512),
    heads=(4, 4, 8, 16),
    mlp_ratios=(4, 4, 3, 3),
    decay_max=(6, 6, 8, 8),
    full_attention=(False, False, False, True),
    layer_scale=(False, False, False, False),
    drop_path_rate=0.15,
    published=Published(27, 4.5, 84.1, top1_token_labels=84.8, params_token_labels=27),
)


RMT_B = Variant(
    name="rmt_b",
    depths=(4, 8, 25, 8),
    dims=(80, 160, 320, 512),
    heads=(5, 5, 10, 16),
    mlp_ratios=(4, 4, 3, 3),
    decay_max=(7, 7, 8, 8),
    full_attention=(False, False, False, True),
    layer_scale=(False, False, True, True),
    drop_path_rate=0.4,
    published=Published(54, 9.7, 85.0, top1_token_labels=85.6, params_token_labels=55),
)


RMT_L = Variant(
    name="rmt_l",
    depths=(4, 8, 25, 8),
    dims=(112, 224, 448, 640),
    heads=(7, 7, 14, 20),
    mlp_ratios=(4, 4, 3, 3),
    decay_max=(8, 8, 8, 8),
    full_attention=(False, False, False, True),
    layer_scale=(False, False, True, True),
    drop_path_rate=0.5,
    published=Published(95, 18.2, 85.5, top1_token_labels=86.1, params_token_labels=96),
)


# The strict comparison of Table 6: DeiT and Swin with MaSA instead of their own attention. They
# were never released; docs/inferred.md says what was inferred, and from what.
RMT_DEIT_S = Variant(
    name="rmt_deit_s",
    depths=(12,),
    dims=(384,),
    heads=(6,),
    mlp_ratios=(4,),
    decay_max=(8,),
    full_attention=(True,),
    layer_scale=(False,),
    drop_path_rate=0.1,
    stem="patch",
    patch_size=16,
    cpe=False,
    head_hidden=0,
    published=Published(22, 4.6, 81.7),
)


RMT_SWIN_T = Variant(
    name="rmt_swin_t",
    depths=(2, 2, 6, 2),
    dims=(96, 192, 384, 768),
    heads=(3, 6, 12, 24),
    mlp_ratios=(4, 4, 4, 4),
    decay_max=(8, 8, 8, 8),
    full_attention=(False, False, False, True),
    layer_scale=(False, False, False, False),
    drop_path_rate=0.2,
    stem="patch",
    patch_size=4,
    downsample="merge",
    cpe=False,
    head_hidden=0,
    published=Published(29, 4.7, 83.6),
)


RMT_SWIN_S = Variant(
    name="rmt_swin_s",
    depths=(2, 2, 18, 2),
    dims=(96, 192, 384, 768),
    heads=(3, 6, 12, 24),
    mlp_ratios=(4, 4, 4, 4),
    decay_max=(8, 8, 8, 8),
    full_attention=(False, False, False, True),
    layer_scale=(False, False, False, False),
    drop_path_rate=0.3,
    stem="patch",
    patch_size=4,
    downsample="merge",
    cpe=False,
    head_hidden=0,
    published=Published(50, 9.1, 84.5),
)


# Not in the paper: small enough to train on two CPU cores in minutes.
RMT_NANO = Variant(
    name="rmt_nano",
    depths=(1, 1, 2, 1),
    dims=(32, 64, 96, 128),
    heads=(2, 2, 3, 4),
    mlp_ratios=(3, 3, 3, 3),
    decay_max=(6, 6, 8, 8),
    full_attention=(False, False, False, True),
    layer_scale=(False, False, False, False),
    drop_path_rate=0.05,
    head_hidden=256,
)


#: The paper's variants in the order of its tables.
PAPER_VARIANTS: dict[str, Variant] = {
    v.name: v for v in (RMT_T, RMT_S, RMT_B, RMT_L, RMT_DEIT_S, RMT_SWIN_T, RMT_SWIN_S)
}


#: Variants of this project.
OWN_VARIANTS: dict[str, Variant] = {RMT_NANO.name: RMT_NANO}


VARIANTS: dict[str, Variant] = PAPER_VARIANTS | OWN_VARIANTS


#: Fields that can be overridden by name in ``create_model``.
VARIANT_FIELDS = tuple(f.name for f in fields(Variant) if f.name not in ("name", "published"))


class UnknownOptionError(ValueError, TypeError):
    """An option that no variant has.

    A ``TypeError`` too, as Python raises for an unknown argument: libraries that try an option on
    any model of timm, such as ``img_size``, go on without it after that error only.
    """


def get_variant(name: str, **overrides: Any) -> Variant:
    """Return the variant called ``name`` with some fields replaced.

    Raises:
        ValueError: for an unknown name; the message names the nearest one.
        UnknownOptionError: for an unknown field; likewise.
    """
    if name not in VARIANTS:
        raise ValueError(f"unknown model {name!r}{did_you_mean(name, VARIANTS)}")
    for field in overrides:
        if field not in VARIANT_FIELDS:
            raise UnknownOptionError(
                f"unknown option {field!r} of {name}{did_you_mean(field, VARIANT_FIELDS)}"
            )
    # JSON and YAML have lists where the record has tuples.
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()
    }
    return replace(VARIANTS[name], **values)


def variant_overrides(variant: Variant) -> dict[str, Any]:
    """Return the fields in which ``variant`` differs from the registered variant of its name."""
    base = VARIANTS[variant.name]
    return {
        field: getattr(variant, field)
        for field in VARIANT_FIELDS
        if getattr(variant, field) != getattr(base, field)
    }
