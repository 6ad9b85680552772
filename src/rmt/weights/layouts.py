"""The layouts that files of weights may have: a sentinel, a table of names, and a description.

A new layout is a row of :data:`LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from rmt.messages import printable
from rmt.modeling.registry import IMAGENET_MEAN, IMAGENET_STD, STARRED_TAG, default_cfgs
from rmt.modeling.saved import Description
from rmt.weights.release import (
    CLASSIFIER,
    DETECTION,
    SEGMENTATION,
    count_blocks,
    variant_like,
    variant_of_release,
)
from rmt.weights.templates import Rule, Template

State = Mapping[str, Tensor]
Describe = Callable[[State, Mapping[str, Any]], Description]
_RETINA_ANCHORS = 9


@dataclass(frozen=True)
class Layout:
    """A way to name the tensors of a model.

    Attributes:
        sentinel: template of keys that no other layout has.
        rules: the file's names and ours; empty where they are the same.
        describe: the description of the model with these tensors, in a file that says this of it:
            ``meta`` of the release's dense models, or the hint of one that uses our names.
    """

    sentinel: str
    rules: tuple[Rule, ...]
    describe: Describe


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


def _release_classifier(state: State, meta: Mapping[str, Any]) -> Description:
    name = variant_of_release(state)
    found = _classifier(name, state, stem="patch_embed.proj.0.weight", classes="head")
    published = f"imagenet/{name}" + ("_tl" if "aux_head.weight" in state else "")
    return replace(found, info={"published_recipe": published})


def _our_classifier(state: State, hint: Mapping[str, Any]) -> Description:
    """Describe a state dict of :class:`rmt.RMT`, by its sizes where nothing names the variant."""
    stem = "stem.0.weight" if "stem.0.weight" in state else "stem.proj.weight"
    name = hint.get("architecture") or _variant_of_ours(state)
    found = _classifier(name, state, stem=stem, classes="head.fc")
    # timm counts the classes among the arguments.
    args = {k: v for k, v in hint.get("model_args", {}).items() if k != "num_classes"}
    config = found.config | {"model_args": found.config["model_args"] | args}
    config["pretrained_cfg"] = config["pretrained_cfg"] | hint.get("pretrained_cfg", {})
    names = hint.get("label_names")
    if names and names != [f"LABEL_{i}" for i in range(len(names))]:  # transformers' own
        return replace(found, config=config, info={"label_names": names})
    return replace(found, config=config)


def _variant_of_ours(state: State) -> str:
    block = Template("stages.{i}.blocks.{j}.{rest}")
    found = [(block.read(key), tensor) for key, tensor in state.items()]
    blocks = [(values, tensor) for values, tensor in found if values]
    widths = {int(v["i"]): t.numel() for v, t in blocks if v["rest"] == "norm1.weight"}
    return variant_like(count_blocks(values for values, _ in blocks), widths)


def _our_dense_model(state: State, hint: Mapping[str, Any]) -> Description:
    raise ValueError(
        "these are the tensors of a detector or segmenter of this package without its "
        "description; write it with save_pretrained or rmt.save"
    )


def _detector(head: str, classes: str, anchors: int = 1) -> Describe:
    def describe(state: State, meta: Mapping[str, Any]) -> Description:
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


def _segmenter(head: str) -> Describe:
    def describe(state: State, meta: Mapping[str, Any]) -> Description:
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


def _unknown_segmenter(state: State, meta: Mapping[str, Any]) -> Description:
    raise ValueError("its decode_head is not a known one (semantic_fpn, upernet)")


def _names_and_colours(meta: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """Return ``label_names`` and ``palette`` (RGB, 0..255) as far as the file has them."""
    out: dict[str, Any] = {}
    for key, ours in (("CLASSES", "label_names"), ("PALETTE", "palette")):
        values = meta.get(key)
        if values is None or values == ():
            continue
        if not isinstance(values, list | tuple):
            raise ValueError(f"meta[{key!r}] is of type {type(values).__name__}; expected a list")
        if len(values) != num_classes:
            raise ValueError(f"meta[{key!r}] has {len(values)} entries for {num_classes} classes")
        out[ours] = [_name(value) if ours == "label_names" else _colour(value) for value in values]
    return out


def _name(value: Any) -> str:
    if not isinstance(value, str | int):
        raise ValueError(f"meta['CLASSES'] holds the type {type(value).__name__}; expected names")
    return str(value)


def _colour(value: Any) -> list[int]:
    try:
        red, green, blue = map(int, value)
        return list(bytes([red, green, blue]))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"meta['PALETTE'] holds {printable(repr(value))} where red, green and blue, 0 to 255, "
            "are expected"
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
    Layout("backbone.body.{rest}", (), _our_dense_model),
    Layout("stages.{i}.blocks.{j}.attn.k.{rest}", (), _our_classifier),
    Layout("layers.{i}.blocks.{j}.{rest}", CLASSIFIER, _release_classifier),
)
