"""How the authors' files of June 2024 name things, and what each name is here.

One table a part; a key that no row matches is an error of the caller's to report. Shapes are
equal but for LayerScale, which the release keeps as (1, 1, 1, C).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

from rmt.ops.geometry import rotation_angles
from rmt.variants import VARIANTS, Variant

#: Pattern of the release's name, and our name as a template of its groups, each once and in order.
Rule = tuple[str, str]

_BLOCK = r"layers\.(\d+)\.blocks\.(\d+)\."
_OURS = r"stages.\1.blocks.\2."

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
    # The release ends a stage with its downsampling; here the next stage begins with it.
    *(
        (
            rf"layers\.{stage}\.downsample\.{theirs}\.(.+)",
            rf"stages.{stage + 1}.downsample.{ours}.\1",
        )
        for stage in range(3)
        for theirs, ours in (("reduction", "conv"), ("norm", "norm"))
    ),
)
#: Classifier on top of the backbone.
CLASSIFIER: tuple[Rule, ...] = (
    (r"(proj|norm)\.(.+)", r"head.\1.\2"),
    (r"head\.(.+)", r"head.fc.\1"),
    (r"aux_head\.(.+)", r"aux_head.\1"),
)


def _below(theirs: str, ours: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return the rules for the same names behind a prefix, on either side."""
    return tuple((re.escape(theirs) + pattern, ours + rule) for pattern, rule in rules)


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
#: Semantic FPN and UperNet.
SEGMENTATION: tuple[Rule, ...] = (
    *DENSE_BACKBONE,
    *FPN,
    (r"decode_head\.conv_seg\.(.+)", r"head.classifier.conv.\1"),
    # The release counts the doublings between the convolutions too.
    *(
        (rf"decode_head\.scale_heads\.(\d)\.{2 * at}\.(.+)", rf"head.levels.\1.{at}.\2")
        for at in range(3)
    ),
    (r"decode_head\.psp_modules\.(\d)\.1\.(.+)", r"head.pyramid.pooled.\1.\2"),
    (r"decode_head\.bottleneck\.(.+)", r"head.pyramid.join.\1"),
    (r"decode_head\.lateral_convs\.(\d)\.(.+)", r"head.lateral.\1.\2"),
    (r"decode_head\.fpn_convs\.(\d)\.(.+)", r"head.output.\1.\2"),
    (r"decode_head\.fpn_bottleneck\.(.+)", r"head.join.\1"),
    (r"auxiliary_head\.conv_seg\.(.+)", r"aux_head.classifier.conv.\1"),
    (r"auxiliary_head\.convs\.0\.(.+)", r"aux_head.conv.\1"),
)
_BOX_HEAD: tuple[Rule, ...] = (
    (r"shared_convs\.(\d)\.conv\.(.+)", r"convs.\1.0.\2"),
    (r"shared_convs\.(\d)\.bn\.(.+)", r"convs.\1.1.\2"),
    (r"shared_fcs\.(\d)\.(.+)", r"linears.\1.\2"),
    (r"fc_(cls|reg)\.(.+)", r"\1.\2"),
)
_MASK_HEAD: tuple[Rule, ...] = (
    (r"convs\.(\d)\.conv\.(.+)", r"convs.\1.\2"),
    (r"upsample\.(.+)", r"upsample.\1"),
    (r"conv_logits\.(.+)", r"logits.\1"),
)
#: RetinaNet, Mask R-CNN and Cascade Mask R-CNN.
DETECTION: tuple[Rule, ...] = (
    *DENSE_BACKBONE,
    *FPN,
    (r"bbox_head\.(cls|reg)_convs\.(\d)\.conv\.(.+)", r"head.\1_convs.\2.\3"),
    (r"bbox_head\.retina_(cls|reg)\.(.+)", r"head.\1.\2"),
    (r"rpn_head\.rpn_(conv|cls|reg)\.(.+)", r"rpn.\1.\2"),
    # Mask R-CNN's heads have no number, those of the cascade the stage's.
    *(
        rule
        for number, stage in (("", 0), ("0.", 0), ("1.", 1), ("2.", 2))
        for theirs, ours, rules in (("bbox", "box", _BOX_HEAD), ("mask", "mask", _MASK_HEAD))
        for rule in _below(f"roi_head.{theirs}_head.{number}", f"{ours}_heads.{stage}.", rules)
    ),
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
        rules: the table.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    rules: tuple[Rule, ...] = ()

    def name_in_file(self, ours: str) -> str:
        """Return what the file calls a tensor of ours, or would if it had it; else our name."""
        matches = ((re.fullmatch(pattern, ours), back) for pattern, back in map(_back, self.rules))
        possible = [match.expand(back) for match, back in matches if match]

        def has_kin(name: str) -> bool:  # third comes the number of a head, where they have one
            kin = name.split(".")[:3]
            return any(key.split(".")[:3] == kin for key in self.sources.values())

        return self.sources.get(ours) or max(possible, key=has_kin, default=ours)


_GROUP = re.compile(r"\(.+?\)")


def _back(rule: Rule) -> Rule:
    """Return the rule that gives the release's name for ours."""
    theirs, ours = rule
    groups, numbers = iter(_GROUP.findall(theirs)), count(1)
    pattern = re.sub(r"\\\\\d", lambda _: next(groups), re.escape(ours))
    return pattern, _GROUP.sub(lambda _: rf"\{next(numbers)}", theirs).replace(r"\.", ".")


def rename(state: Mapping[str, Tensor], rules: Iterable[Rule]) -> Renamed:
    """Give each tensor of a release file our name.

    Geometry buffers (``Relpos.*``) are listed as dropped; :func:`check_geometry` compares them.
    """
    out = Renamed(rules=tuple(rules))
    compiled = [(re.compile(pattern), ours) for pattern, ours in out.rules]
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
            return match.expand(ours)
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
