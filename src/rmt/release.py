"""How the authors' files of June 2024 name things, and what each name is here.

One table a part; a key that no row matches is an error of the caller's to report. Shapes are
equal but for LayerScale, which the release keeps as (1, 1, 1, C).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rmt.ops.geometry import rotation_angles
from rmt.variants import VARIANTS, Variant

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
_OURS = r"stages.\1.blocks.\2."


def _next_stage(match: re.Match[str]) -> str:
    # The release ends a stage with its downsampling; here the next stage begins with it.
    part = {"reduction": "conv", "norm": "norm"}[match[2]]
    return f"stages.{int(match[1]) + 1}.downsample.{part}.{match[3]}"


#: Backbone: the same names in classification, detection and segmentation files.
BACKBONE: tuple[Rule, ...] = (
    (r"patch_embed\.proj\.(\d+)\.(.+)", r"stem.\1.\2"),
    (_BLOCK + r"retention\.([qkv])_proj\.(.+)", _OURS + r"attn.\3.\4"),
    (_BLOCK + r"retention\.out_proj\.(.+)", _OURS + r"attn.proj.\3"),
    (_BLOCK + r"retention\.lepe\.conv\.(.+)", _OURS + r"attn.lce.\3"),
    (_BLOCK + r"retention_layer_norm\.(.+)", _OURS + r"norm1.\3"),
    (_BLOCK + r"final_layer_norm\.(.+)", _OURS + r"norm2.\3"),
    (_BLOCK + r"ffn\.dwconv\.conv\.(.+)", _OURS + r"mlp.conv.\3"),
    (_BLOCK + r"ffn\.(fc[12])\.(.+)", _OURS + r"mlp.\3.\4"),
    (_BLOCK + r"pos\.conv\.(.+)", _OURS + r"cpe.\3"),
    (_BLOCK + r"gamma_([12])", _OURS + r"ls\3.gamma"),
    (r"layers\.(\d+)\.downsample\.(reduction|norm)\.(.+)", _next_stage),
)
#: Classifier on top of the backbone.
CLASSIFIER: tuple[Rule, ...] = (
    (r"(proj|norm)\.(.+)", r"head.\1.\2"),
    (r"head\.(.+)", r"head.fc.\1"),
    (r"aux_head\.(.+)", r"aux_head.\1"),
)


def _below(theirs: str, ours: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return the rules for the same names behind a prefix, on either side."""

    def put(rule: str | Callable[[re.Match[str]], str]) -> str | Callable[[re.Match[str]], str]:
        return (lambda match: ours + rule(match)) if callable(rule) else ours + rule

    return tuple((re.escape(theirs) + pattern, put(rule)) for pattern, rule in rules)


#: Backbone of detectors and segmenters, with a norm on each output.
DENSE_BACKBONE: tuple[Rule, ...] = (
    *_below("backbone.", "backbone.body.", BACKBONE),
    (r"backbone\.extra_norms\.(\d)\.(.+)", r"backbone.norms.\1.\2"),
)
#: Pyramid of detectors and of Semantic FPN.
FPN: tuple[Rule, ...] = (
    (r"neck\.lateral_convs\.(\d)\.conv\.(.+)", r"neck.lateral.\1.\2"),
    (r"neck\.fpn_convs\.(\d)\.conv\.(.+)", r"neck.output.\1.\2"),
)


def _climb(match: re.Match[str]) -> str:
    # The release counts the doublings between the convolutions too.
    return f"head.levels.{match[1]}.{int(match[2]) // 2}.{match[3]}"


#: Semantic FPN and UperNet.
SEGMENTATION: tuple[Rule, ...] = (
    *DENSE_BACKBONE,
    *FPN,
    (r"decode_head\.conv_seg\.(.+)", r"head.classifier.conv.\1"),
    (r"decode_head\.scale_heads\.(\d)\.(\d)\.(.+)", _climb),
    (r"decode_head\.psp_modules\.(\d)\.1\.(.+)", r"head.pyramid.pooled.\1.\2"),
    (r"decode_head\.bottleneck\.(.+)", r"head.pyramid.join.\1"),
    (r"decode_head\.lateral_convs\.(\d)\.(.+)", r"head.lateral.\1.\2"),
    (r"decode_head\.fpn_convs\.(\d)\.(.+)", r"head.output.\1.\2"),
    (r"decode_head\.fpn_bottleneck\.(.+)", r"head.join.\1"),
    (r"auxiliary_head\.conv_seg\.(.+)", r"aux_head.classifier.conv.\1"),
    (r"auxiliary_head\.convs\.0\.(.+)", r"aux_head.conv.\1"),
)


def _roi(theirs: str, ours: str) -> Rule:
    """Return the rule for a part of a box or mask head, with or without a stage's number."""
    pattern = r"roi_head\.(bbox|mask)_head\.(?:(\d)\.)?" + theirs

    def put(match: re.Match[str]) -> str:
        kind = {"bbox": "box", "mask": "mask"}[match[1]]
        return f"{kind}_heads.{match[2] or 0}." + match.expand(ours)

    return pattern, put


#: RetinaNet, Mask R-CNN and Cascade Mask R-CNN.
DETECTION: tuple[Rule, ...] = (
    *DENSE_BACKBONE,
    *FPN,
    (r"bbox_head\.(cls|reg)_convs\.(\d)\.conv\.(.+)", r"head.\1_convs.\2.\3"),
    (r"bbox_head\.retina_(cls|reg)\.(.+)", r"head.\1.\2"),
    (r"rpn_head\.rpn_(conv|cls|reg)\.(.+)", r"rpn.\1.\2"),
    _roi(r"shared_convs\.(\d)\.conv\.(.+)", r"convs.\3.0.\4"),
    _roi(r"shared_convs\.(\d)\.bn\.(.+)", r"convs.\3.1.\4"),
    _roi(r"shared_fcs\.(\d)\.(.+)", r"linears.\3.\4"),
    _roi(r"fc_(cls|reg)\.(.+)", r"\3.\4"),
    _roi(r"convs\.(\d)\.conv\.(.+)", r"convs.\3.\4"),
    _roi(r"upsample\.(.+)", r"upsample.\3"),
    _roi(r"conv_logits\.(.+)", r"logits.\3"),
)
_GEOMETRY = re.compile(r"(?:backbone\.)?layers\.(\d+)\.Relpos\.(angle|decay)")


@dataclass
class Renamed:
    """Tensors under our names, and an account of every key of the file.

    Attributes:
        tensors: ours name -> tensor.
        sources: ours name -> the file's name.
        dropped: the file's name -> why it is not needed.
        unknown: names that no rule matches.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def rename(state: Mapping[str, Tensor], rules: Iterable[Rule]) -> Renamed:
    """Give each tensor of a release file our name.

    Geometry buffers (``Relpos.*``) are listed as dropped; :func:`check_geometry` compares them.
    """
    compiled = [(re.compile(pattern), ours) for pattern, ours in rules]
    out = Renamed()
    for key, tensor in state.items():
        if _GEOMETRY.fullmatch(key):
            out.dropped[key] = "computed from the variant, and equal to the file's"
            continue
        ours = _first_match(key, compiled)
        if ours is None:
            out.unknown.append(key)
            continue
        out.tensors[ours] = tensor.flatten() if ours.endswith(".gamma") else tensor
        out.sources[ours] = key
    return out


def check_geometry(
    state: Mapping[str, Tensor], variant: Variant, log_decay: Mapping[int, tuple[float, ...] | None]
) -> None:
    """Compare the file's rotation angles and decay rates with ours.

    Args:
        state: the release's tensors, with or without ``backbone.`` before the names.
        variant: what the file was recognised as.
        log_decay: log γ of our model's heads by stage.

    Raises:
        ValueError: naming the first buffer that differs: the file is another model.
    """
    for key, tensor in state.items():
        match = _GEOMETRY.fullmatch(key)
        if match is None:
            continue
        stage = int(match[1])
        if stage not in log_decay:
            raise ValueError(f"{key} of the file is of a stage that {variant.name} does not have")
        if match[2] == "decay":
            ours = torch.tensor(log_decay[stage])
        else:
            width = variant.dims[stage] // variant.heads[stage]
            ours = torch.tensor(rotation_angles(width)).repeat_interleave(2)
        theirs = tensor.float().flatten()
        # One step of float32 is the spread between processors' logarithms.
        if theirs.shape != ours.shape or not torch.allclose(theirs, ours, rtol=1e-6, atol=0):
            raise ValueError(
                f"{key} of the file is not {variant.name}'s: {theirs[:4].tolist()}… against "
                f"{ours[:4].tolist()}…; it belongs to a model with another geometry"
            )


def _first_match(key: str, rules: list) -> str | None:
    for pattern, ours in rules:
        match = pattern.fullmatch(key)
        if match:
            return ours(match) if callable(ours) else match.expand(ours)
    return None


def depths_of_release(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the number of blocks of each stage, () for what is no RMT of the release.

    Args:
        state: the release's tensors of any task, with or without ``backbone.`` before the names.
    """
    pattern = re.compile(r"(?:backbone\.)?" + _BLOCK + r"retention\..+")
    blocks = {(int(m[1]), int(m[2])) for key in state if (m := pattern.fullmatch(key))}
    stages = 1 + max((stage for stage, _ in blocks), default=-1)
    return tuple(sum(s == stage for s, _ in blocks) for stage in range(stages))


def variant_of_release(state: Mapping[str, Tensor]) -> str:
    """Return the registered variant whose depths and widths a release file has.

    Args:
        state: as in :func:`depths_of_release`.

    Raises:
        ValueError: if it is the layout of December 2023, or no variant fits; the message says so.
    """
    depths = depths_of_release(state)
    if not depths:
        raise ValueError("no key of the form layers.I.blocks.J.retention: these are no RMT weights")
    if not any(".ffn.dwconv." in key for key in state):
        raise ValueError(
            "this is the layout of December 2023 to June 2024 (no ffn.dwconv): a different, weaker "
            "model without rotation, without the convolution in the feed-forward and without the "
            "1024-wide head. Its weights cannot give the published numbers; use a file of June 2024"
        )
    norm = re.compile(r"(?:backbone\.)?" + _BLOCK + r"final_layer_norm\.weight")
    found = ((norm.fullmatch(key), value) for key, value in state.items())
    widths = {int(match[1]): value.numel() for match, value in found if match}
    name = variant_like(depths, widths)
    if name is None:
        raise ValueError(f"no RMT variant has {depths} blocks, with channels {widths} by stage")
    return name


def variant_like(depths: tuple[int, ...], widths: Mapping[int, int]) -> str | None:
    """Return the first variant of these depths and, as far as they are known, widths by stage."""
    for name, variant in VARIANTS.items():
        if variant.depths == depths and all(variant.dims[i] == dim for i, dim in widths.items()):
            return name
    return None


def image_channels(stem: Tensor | None) -> int:
    """Return the image channels that the stem's first convolution reads; RGB if it is missing."""
    return stem.shape[1] if stem is not None and stem.ndim == 4 else 3


def class_count(*entries: Tensor | None) -> int:
    """Return the classes of a classifier by the first of its entries that is there; else 0."""
    return next((len(entry) for entry in entries if entry is not None and entry.ndim), 0)
