"""What a file of weights is: one look finds the model's description and its tensors.

A layout of others is a row of :data:`LAYOUTS`: a key that only it has, a table of names, and a
function that describes the model by its tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from rmt.modeling.registry import IMAGENET_MEAN, IMAGENET_STD, STARRED_TAG, default_cfgs
from rmt.modeling.saved import Description
from rmt.variants import VARIANTS
from rmt.weights.release import (
    CLASSIFIER,
    DETECTION,
    SEGMENTATION,
    Renamed,
    count_blocks,
    depths_of_release,
    rename,
    variant_like,
    variant_of_release,
)
from rmt.weights.templates import Rule, Template

Weights = Literal["raw", "ema"]
State = Mapping[str, Tensor]
Meta = Mapping[str, Any]

# Tensors in a training checkpoint of ours (Lightning's file) have these prefixes.
_OURS = {"raw": "model.", "ema": "ema.module."}
_RETINA_ANCHORS = 9


@dataclass(frozen=True)
class Identified:
    """What is in a file.

    Attributes:
        description: of the model.
        tensors: its state dict, under our names.
        renamed: what the file calls them; None where it uses our names.
    """

    description: Description
    tensors: Mapping[str, Tensor]
    renamed: Renamed | None = None


@dataclass(frozen=True)
class Layout:
    """A way to name the tensors of a model.

    Attributes:
        sentinel: template of keys that no other layout has.
        rules: the file's names and ours; empty where they are the same.
        describe: the description of the model with these tensors in a file with this ``meta``.
    """

    sentinel: str
    rules: tuple[Rule, ...]
    describe: Callable[[State, Meta], Description]


def identify(
    content: Mapping[str, Any],
    name: str,
    *,
    weights: Weights | None = None,
    description: Description | None = None,
) -> Identified:
    """Find out which model a file holds.

    Args:
        content: of the file: tensors under their names, or a dict that has them under ``model``,
            ``model_ema`` or ``state_dict``, as the release and Lightning write it.
        name: of the file, for messages.
        weights: ``"raw"`` or ``"ema"`` where it holds both; None takes the published choice of a
            release file (EMA; raw for RMT-T) and the better one of a run of ours.
        description: what the file's metadata say of ``content``, which are tensors then.

    Raises:
        ValueError: if it holds no model that is known here, or not the wanted ``weights``.
    """
    if description is not None:
        _only(description.info.get("weights", "raw"), weights, name)
        return Identified(description, _tensors(content, name))
    if "rmt" in content:
        return _from_training(content, weights, name)
    state, chosen = _choose_weights(content, weights, name)
    meta = content.get("meta")
    try:
        layout = _layout_of(state)
        if layout is None:
            raise ValueError(f"its keys are of no known model, first {list(state)[:3]}")
        found = layout.describe(state, meta if isinstance(meta, Mapping) else {})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    found = replace(found, info=found.info | {"source": Path(name).name, "weights": chosen})
    if not layout.rules:
        return Identified(found, state)
    renamed = rename(state, layout.rules)
    return Identified(found, renamed.tensors, renamed)


def _from_training(content: Mapping[str, Any], weights: Weights | None, name: str) -> Identified:
    kept = content["rmt"]
    chosen = weights or kept["best"]["weights"]
    prefix = _OURS[chosen]
    state = content["state_dict"]
    tensors = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not tensors:
        raise ValueError(f"{name} holds no {chosen!r} weights: its run kept no weight average")
    found = Description.read(kept["description"])
    return Identified(replace(found, info=found.info | {"weights": chosen}), tensors)


def _choose_weights(
    content: Mapping[str, Any], weights: Weights | None, name: str
) -> tuple[State, str]:
    """Pick a state dict out of a file of others, and say which it is."""
    if "state_dict" in content:  # detection and segmentation
        _only("raw", weights, name)
        return _tensors(content["state_dict"], name), "raw"
    holds = {kind: content.get(key) for kind, key in (("raw", "model"), ("ema", "model_ema"))}
    holds = {kind: held for kind, held in holds.items() if _is_entry(held)}
    if not holds:
        _only("raw", weights, name)
        return _tensors(content, name), "raw"
    if len(holds) == 1:
        ((chosen, held),) = holds.items()
        _only(chosen, weights, name)
        return _tensors(held, name), chosen
    # The published number is the best EMA epoch, but for RMT-T, whose average stayed behind.
    tiny = depths_of_release(_tensors(holds["raw"], name)) == VARIANTS["rmt_t"].depths
    chosen = weights or ("raw" if tiny else "ema")
    return _tensors(holds[chosen], name), chosen


def _is_entry(held: Any) -> bool:
    """Return whether an entry of a file is something: neither absent, nor empty, nor a tensor."""
    empty = isinstance(held, Mapping) and not held
    return held is not None and not empty and not isinstance(held, Tensor)


def _only(kind: str, weights: Weights | None, name: str) -> None:
    """Refuse to call the one kind of weights that a file holds the other one."""
    if weights not in (None, kind):
        raise ValueError(f"{name} holds {kind!r} weights only, no {weights!r} ones")


def _tensors(state: Any, name: str) -> State:
    entries = state.items() if isinstance(state, Mapping) else ()
    if entries and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in entries):
        return state
    held = list(state)[:8] if isinstance(state, Mapping) else type(state).__name__
    raise ValueError(
        f"{name} holds no weights: names of tensors were expected, alone or under 'model', "
        f"'model_ema' or 'state_dict', and there is {held}"
    )


def _layout_of(state: State) -> Layout | None:
    for layout in LAYOUTS:
        sentinel = Template(layout.sentinel)
        if any(sentinel.read(key) is not None for key in state):
            return layout
    return None


# The descriptions, layout by layout.


def _classifier(name: str, state: State, *, stem: str, classes: str) -> Description:
    """Describe a classifier by the names of its first and last layer.

    A file may carry the auxiliary head of token labelling; its input width says whether it reads
    the last map or the head's tokens.
    """
    auxiliary = state.get("aux_head.weight")
    cfgs = default_cfgs[name].cfgs
    tag = STARRED_TAG if auxiliary is not None and STARRED_TAG in cfgs else next(iter(cfgs))
    args = {
        "in_chans": _image_channels(state.get(stem)),
        "token_labels": any(key.startswith("aux_head.") for key in state),
        "aux_width": auxiliary.shape[1] if auxiliary is not None and auxiliary.ndim == 2 else None,
    }
    return Description(
        task="classification",
        config={
            "architecture": name,
            "num_classes": _outputs(state, classes),
            "model_args": args,
            "pretrained_cfg": cfgs[tag].to_dict(),
        },
    )


def _release_classifier(state: State, meta: Meta) -> Description:
    name = variant_of_release(state)
    found = _classifier(name, state, stem="patch_embed.proj.0.weight", classes="head")
    published = f"imagenet/{name}" + ("_tl" if "aux_head.weight" in state else "")
    return replace(found, info={"published_recipe": published})


def _our_classifier(state: State, meta: Meta) -> Description:
    """Describe a bare state dict of :class:`rmt.RMT`, whose sizes alone tell the variant."""
    block = Template("stages.{i}.blocks.{j}.{rest}")
    found = [(block.read(key), tensor) for key, tensor in state.items()]
    blocks = [(values, tensor) for values, tensor in found if values]
    widths = {int(v["i"]): t.numel() for v, t in blocks if v["rest"] == "norm1.weight"}
    name = variant_like(count_blocks(values for values, _ in blocks), widths)
    stem = "stem.0.weight" if "stem.0.weight" in state else "stem.proj.weight"
    return _classifier(name, state, stem=stem, classes="head.fc")


def _detector(head: str, classes: str, anchors: int = 1) -> Callable[[State, Meta], Description]:
    def describe(state: State, meta: Meta) -> Description:
        num_classes = _outputs(state, classes) // anchors
        return Description(
            task="detection",
            config={
                "architecture": head,
                "num_classes": num_classes,
                "model_args": {"backbone": variant_of_release(state)},
            },
            info=_names_and_colours(meta, num_classes),
        )

    return describe


def _segmenter(head: str) -> Callable[[State, Meta], Description]:
    def describe(state: State, meta: Meta) -> Description:
        classifier = state.get("decode_head.conv_seg.weight")
        width = classifier.shape[1] if classifier is not None and classifier.ndim > 1 else None
        num_classes = _outputs(state, "decode_head.conv_seg")
        return Description(
            task="segmentation",
            config={
                "architecture": head,
                "num_classes": num_classes,
                "model_args": {
                    "backbone": variant_of_release(state),
                    "in_chans": _image_channels(state.get("backbone.patch_embed.proj.0.weight")),
                    "channels": width,
                },
            },
            info={
                "pretrained_cfg": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
                **_names_and_colours(meta, num_classes),
            },
        )

    return describe


def _unknown_segmenter(state: State, meta: Meta) -> Description:
    raise ValueError("its decode_head is not a known one (semantic_fpn, upernet)")


def _names_and_colours(meta: Meta, num_classes: int) -> dict[str, Any]:
    """Return ``label_names`` and ``palette`` (RGB, 0..255) as far as the file has them."""
    out: dict[str, Any] = {}
    for key, ours in (("CLASSES", "label_names"), ("PALETTE", "palette")):
        values: Sequence[Any] | None = meta.get(key)
        if not values:
            continue
        if len(values) != num_classes:
            raise ValueError(f"meta[{key!r}] has {len(values)} entries for {num_classes} classes")
        out[ours] = [str(value) if ours == "label_names" else _colour(value) for value in values]
    return out


def _colour(value: Any) -> list[int]:
    try:
        red, green, blue = map(int, value)
        return list(bytes([red, green, blue]))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"meta['PALETTE'] holds {value!r} where red, green and blue, 0 to 255, are expected"
        ) from error


def _image_channels(stem: Tensor | None) -> int:
    """Return the image channels that the stem's first convolution reads; RGB if it is missing."""
    return stem.shape[1] if stem is not None and stem.ndim == 4 else 3


def _outputs(state: State, layer: str) -> int:
    """Return the outputs of a layer by its weight or bias; 0 if the file has neither."""
    entries = (state.get(f"{layer}.{kind}") for kind in ("weight", "bias"))
    return next((len(entry) for entry in entries if entry is not None and entry.ndim), 0)


#: What is recognised, in this order.
LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "bbox_head.retina_{branch:cls|reg}.{rest}",
        DETECTION,
        _detector("retinanet", "bbox_head.retina_cls", _RETINA_ANCHORS),
    ),
    Layout(
        "roi_head.mask_head.conv_logits.{rest}",
        DETECTION,
        _detector("mask_rcnn", "roi_head.mask_head.conv_logits"),
    ),
    Layout(
        "roi_head.mask_head.{i}.conv_logits.{rest}",
        DETECTION,
        _detector("cascade_mask_rcnn", "roi_head.mask_head.0.conv_logits"),
    ),
    Layout("decode_head.scale_heads.{i}.{rest}", SEGMENTATION, _segmenter("semantic_fpn")),
    Layout("decode_head.fpn_bottleneck.{rest}", SEGMENTATION, _segmenter("upernet")),
    Layout("decode_head.conv_seg.{rest}", SEGMENTATION, _unknown_segmenter),
    Layout("stages.{i}.blocks.{j}.attn.k.{rest}", (), _our_classifier),
    Layout("layers.{i}.blocks.{j}.{rest}", CLASSIFIER, _release_classifier),
)
