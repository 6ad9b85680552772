"""How the authors' files of June 2024 name things, and what each name is here.

One table for each part of a model; a key that no row matches is an error, which the caller
reports. Shapes are equal but for LayerScale, which the release keeps as (1, 1, 1, C).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rmt.ops.geometry import rotation_angles
from rmt.variants import VARIANTS, Variant
from rmt.weights.templates import Rule, Template, below

_BLOCK = "layers.{i}.blocks.{j}."
_OURS = "stages.{i}.blocks.{j}."

#: Backbone: the same names in classification, detection and segmentation files.
BACKBONE: tuple[Rule, ...] = (
    Rule("patch_embed.proj.{i}.{rest}", "stem.{i}.{rest}"),
    Rule(_BLOCK + "retention.{p:q|k|v}_proj.{rest}", _OURS + "attn.{p}.{rest}"),
    Rule(_BLOCK + "retention.out_proj.{rest}", _OURS + "attn.proj.{rest}"),
    Rule(_BLOCK + "retention.lepe.conv.{rest}", _OURS + "attn.lce.{rest}"),
    Rule(_BLOCK + "retention_layer_norm.{rest}", _OURS + "norm1.{rest}"),
    Rule(_BLOCK + "final_layer_norm.{rest}", _OURS + "norm2.{rest}"),
    Rule(_BLOCK + "ffn.dwconv.conv.{rest}", _OURS + "mlp.conv.{rest}"),
    Rule(_BLOCK + "ffn.{layer:fc1|fc2}.{rest}", _OURS + "mlp.{layer}.{rest}"),
    Rule(_BLOCK + "pos.conv.{rest}", _OURS + "cpe.{rest}"),
    Rule(_BLOCK + "gamma_{branch:1|2}", _OURS + "ls{branch}.gamma"),
    # The release ends a stage with its downsampling; here the next stage begins with it.
    *(
        rule
        for stage in range(3)
        for rule in below(
            f"layers.{stage}.downsample.",
            f"stages.{stage + 1}.downsample.",
            (Rule("reduction.{rest}", "conv.{rest}"), Rule("norm.{rest}", "norm.{rest}")),
        )
    ),
)
#: Classifier on top of the backbone.
CLASSIFIER: tuple[Rule, ...] = (
    *BACKBONE,
    Rule("{layer:proj|norm}.{rest}", "head.{layer}.{rest}"),
    Rule("head.{rest}", "head.fc.{rest}"),
    Rule("aux_head.{rest}", "aux_head.{rest}"),
)
#: Backbone of detectors and segmenters, with a norm on each output.
DENSE_BACKBONE: tuple[Rule, ...] = (
    *below("backbone.", "backbone.body.", BACKBONE),
    Rule("backbone.extra_norms.{i}.{rest}", "backbone.norms.{i}.{rest}"),
)
#: Pyramid of detectors and of Semantic FPN.
FPN: tuple[Rule, ...] = (
    Rule("neck.lateral_convs.{i}.conv.{rest}", "neck.lateral.{i}.{rest}"),
    Rule("neck.fpn_convs.{i}.conv.{rest}", "neck.output.{i}.{rest}"),
)
#: Semantic FPN and UperNet.
SEGMENTATION: tuple[Rule, ...] = (
    *DENSE_BACKBONE,
    *FPN,
    Rule("decode_head.conv_seg.{rest}", "head.classifier.conv.{rest}"),
    # The release counts the doublings between the convolutions too.
    Rule("decode_head.scale_heads.{i}.0.{rest}", "head.levels.{i}.0.{rest}"),
    Rule("decode_head.scale_heads.{i}.2.{rest}", "head.levels.{i}.1.{rest}"),
    Rule("decode_head.scale_heads.{i}.4.{rest}", "head.levels.{i}.2.{rest}"),
    Rule("decode_head.psp_modules.{i}.1.{rest}", "head.pyramid.pooled.{i}.{rest}"),
    Rule("decode_head.bottleneck.{rest}", "head.pyramid.join.{rest}"),
    Rule("decode_head.lateral_convs.{i}.{rest}", "head.lateral.{i}.{rest}"),
    Rule("decode_head.fpn_convs.{i}.{rest}", "head.output.{i}.{rest}"),
    Rule("decode_head.fpn_bottleneck.{rest}", "head.join.{rest}"),
    Rule("auxiliary_head.conv_seg.{rest}", "aux_head.classifier.conv.{rest}"),
    Rule("auxiliary_head.convs.0.{rest}", "aux_head.conv.{rest}"),
)
_BOX_HEAD: tuple[Rule, ...] = (
    Rule("shared_convs.{i}.conv.{rest}", "convs.{i}.0.{rest}"),
    Rule("shared_convs.{i}.bn.{rest}", "convs.{i}.1.{rest}"),
    Rule("shared_fcs.{i}.{rest}", "linears.{i}.{rest}"),
    Rule("fc_{branch:cls|reg}.{rest}", "{branch}.{rest}"),
)
_MASK_HEAD: tuple[Rule, ...] = (
    Rule("convs.{i}.conv.{rest}", "convs.{i}.{rest}"),
    Rule("upsample.{rest}", "upsample.{rest}"),
    Rule("conv_logits.{rest}", "logits.{rest}"),
)
#: RetinaNet, Mask R-CNN and Cascade Mask R-CNN.
DETECTION: tuple[Rule, ...] = (
    *DENSE_BACKBONE,
    *FPN,
    Rule("bbox_head.{branch:cls|reg}_convs.{i}.conv.{rest}", "head.{branch}_convs.{i}.{rest}"),
    Rule("bbox_head.retina_{branch:cls|reg}.{rest}", "head.{branch}.{rest}"),
    Rule("rpn_head.rpn_{layer:conv|cls|reg}.{rest}", "rpn.{layer}.{rest}"),
    # The heads of Mask R-CNN have no number, those of the cascade that of their stage.
    *(
        rule
        for number, stage in (("", 0), ("0.", 0), ("1.", 1), ("2.", 2))
        for theirs, ours, rules in (("bbox", "box", _BOX_HEAD), ("mask", "mask", _MASK_HEAD))
        for rule in below(f"roi_head.{theirs}_head.{number}", f"{ours}_heads.{stage}.", rules)
    ),
)
_PREFIXES = ("", "backbone.")
_GEOMETRY = tuple(
    Template(prefix + "layers.{i}.Relpos.{buffer:angle|decay}") for prefix in _PREFIXES
)
_RETENTION = tuple(Template(prefix + _BLOCK + "retention.{rest}") for prefix in _PREFIXES)
_NORM = tuple(Template(prefix + _BLOCK + "final_layer_norm.weight") for prefix in _PREFIXES)


@dataclass
class Renamed:
    """Tensors under our names, and an account of every key of the file.

    Attributes:
        tensors: our name -> tensor.
        sources: our name -> the file's name.
        geometry: buffers (``Relpos.*``) that are computed here; :func:`check_geometry` compares.
        prefix: what stands before all names of the network in the file, such as ``module.``.
        unknown: names that no rule matches.
        rules: the table.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    geometry: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    rules: tuple[Rule, ...] = ()
    prefix: str = ""

    def name_in_file(self, ours: str) -> str:
        """Return what the file calls a tensor of ours, or would if it had it; else our name."""
        return self.prefix + self._name_behind_prefix(ours)

    def _name_behind_prefix(self, ours: str) -> str:
        if ours in self.sources:
            return self.sources[ours]
        possible = [name for rule in self.rules if (name := rule.to_theirs(ours))]
        # The third part is the number of a head, in files where heads have one.
        parents = {tuple(name.split(".")[:3]) for name in self.sources.values()}
        return max(possible, key=lambda name: tuple(name.split(".")[:3]) in parents, default=ours)


def rename(state: Mapping[str, Tensor], rules: Iterable[Rule], *, prefix: str = "") -> Renamed:
    """Give each tensor of a release file our name.

    Args:
        state: the file's tensors; the prefix is cut off already.
        rules: the table.
        prefix: what stood before each name.
    """
    out = Renamed(rules=tuple(rules), prefix=prefix)
    for key, tensor in state.items():
        if _first(_GEOMETRY, key):
            out.geometry[key] = tensor
            continue
        ours = next((name for rule in out.rules if (name := rule.to_ours(key))), None)
        if ours is None:
            out.unknown.append(prefix + key)
            continue
        out.tensors[ours] = tensor.flatten() if ours.endswith(".gamma") else tensor
        out.sources[ours] = key
    return out


def check_geometry(
    buffers: Mapping[str, Tensor],
    variant: Variant,
    log_decay: Mapping[int, tuple[float, ...] | None],
) -> None:
    """Compare the file's rotation angles and decay rates with ours.

    Args:
        buffers: ``geometry`` of the renamed file.
        variant: what the file was recognised as.
        log_decay: log γ of our model's heads by stage.

    Raises:
        ValueError: naming the first buffer that differs: the file is another model.
    """
    for key, tensor in buffers.items():
        values = _first(_GEOMETRY, key)
        assert values is not None
        stage = int(values["i"])
        if stage not in log_decay:
            raise ValueError(
                f"{key} of the file belongs to a stage that {variant.name} does not have"
            )
        if values["buffer"] == "decay":
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


def variant_of_release(state: Mapping[str, Tensor]) -> str:
    """Return the registered variant whose depths and widths a release file has.

    Args:
        state: the release's tensors of any task, with or without ``backbone.`` before the names.

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
    found = ((_first(_NORM, key), tensor) for key, tensor in state.items())
    return variant_like(depths, {int(v["i"]): tensor.numel() for v, tensor in found if v})


def depths_of_release(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Return the number of blocks of each stage, () if it is not an RMT of the release.

    Args:
        state: as in :func:`variant_of_release`.
    """
    return count_blocks(values for key in state if (values := _first(_RETENTION, key)))


def count_blocks(found: Iterable[Mapping[str, str]]) -> tuple[int, ...]:
    """Return the number of blocks of each stage.

    Args:
        found: numbers ``i`` of a stage and ``j`` of a block of it, any number of times.
    """
    count = Counter(stage for stage, _ in {(int(v["i"]), int(v["j"])) for v in found})
    return tuple(count[stage] for stage in range(1 + max(count, default=-1)))


def variant_like(depths: tuple[int, ...], widths: Mapping[int, int]) -> str:
    """Return the first variant of these depths and, as far as they are known, widths by stage.

    Raises:
        ValueError: if there is none.
    """
    for name, variant in VARIANTS.items():
        fits = all(widths.get(stage, dim) == dim for stage, dim in enumerate(variant.dims))
        if variant.depths == depths and fits:
            return name
    raise ValueError(f"no RMT variant has {depths} blocks, with channels {widths} by stage")


def _first(templates: Iterable[Template], name: str) -> dict[str, str] | None:
    found = (template.read(name) for template in templates)
    return next((values for values in found if values is not None), None)
