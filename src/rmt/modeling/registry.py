"""The variants as registered with timm, and the functions that create and list models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, overload

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import FeatureGetterNet

from rmt.messages import did_you_mean
from rmt.modeling.rmt import OPTION_NAMES, RMT, RMTOptions
from rmt.modeling.saved import SHIPPED, read_safetensors
from rmt.variants import OWN_VARIANTS, VARIANTS, Variant, get_variant

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PLAIN_TAG = "in1k"
STARRED_TAG = "token_label_in1k"
#: Weights in this package -> SHA-256 of the file.
SHIPPED_DIGESTS = {
    "rmt_nano.tiny_imagenet": "97b1e1de90ac01d53bc9210db231cba6b2f8b4e7c6f14e9879476cb46151ae57",
}
_STARRED_CLASSIFIERS = ("head.fc", "aux_head")
# Options of timm's factory, which are passed on to it.
_TIMM_OPTIONS = (
    "features_only",
    "out_indices",
    "feature_cls",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_model_args",
    "pretrained_strict",
    "cache_dir",
)


@overload
def create_model(
    name: str, num_classes: int | None = ..., *, features_only: Literal[True], **options: Any
) -> FeatureGetterNet: ...


@overload
def create_model(name: str, num_classes: int | None = ..., **options: Any) -> RMT: ...


def create_model(
    name: str,
    num_classes: int | None = None,
    *,
    in_chans: int = 3,
    drop_path_rate: float | None = None,
    drop_rate: float = 0.0,
    global_pool: str = "avg",
    token_labels: bool = False,
    pretrained: bool = False,
    **options: Any,
) -> RMT | FeatureGetterNet:
    """Create a classification network, as ``timm.create_model`` does after ``import rmt``.

    Args:
        name: one of :func:`list_models`, optionally with a weight tag: ``rmt_s.token_label_in1k``.
        num_classes: None takes 1,000, or those of the weights; 0 gives pooled features.
        in_chans: image channels.
        drop_path_rate: stochastic depth at the last block; None takes the variant's.
        drop_rate: dropout before the classifier.
        global_pool: ``"avg"``, or ``""`` for an unpooled map.
        token_labels: with the auxiliary head of token labelling (the starred models).
        pretrained: with the weights that come with this package: ``rmt_nano.tiny_imagenet``. The
            classifier is randomly initialised for another number of classes. There are none of
            the paper's models; the error says how to load the release's.
        **options: fields of :class:`rmt.variants.Variant` to change, such as ``lce=False``;
            ``aux_width``; ``device`` and ``dtype``; and options of timm's factory, such as
            ``features_only``.

    Returns:
        The network, randomly initialised unless ``pretrained``: (B, in_chans, H, W) ->
        (B, num_classes).

    Raises:
        ValueError: for an unknown name or option (the nearest is named), or for ``pretrained=True``
            where there are no weights.
    """
    base, _, tag = name.partition(".")
    if base not in VARIANTS:
        raise ValueError(f"unknown model {name!r}{did_you_mean(base, VARIANTS)}")
    if tag and tag not in default_cfgs[base].cfgs:
        raise ValueError(f"unknown weight tag {tag!r}{did_you_mean(tag, default_cfgs[base].cfgs)}")
    model: Any = timm.create_model(
        name,
        pretrained=pretrained,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path_rate,
        drop_rate=drop_rate,
        global_pool=global_pool,
        token_labels=token_labels or None,
        **options,
    )
    return model


def list_models() -> list[str]:
    """Return the names of all models: the paper's in the order of its tables, then others."""
    return list(VARIANTS)


def _default_cfg(variant: Variant, *, starred: bool = False) -> dict[str, Any]:
    last = variant.reductions[-1]
    published = variant.published
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (-(-224 // last), -(-224 // last)),
        "crop_pct": 0.96 if starred else 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "first_conv": _first_conv(variant),
        "classifier": _STARRED_CLASSIFIERS if starred else "head.fc",
        "license": "unlicensed-release" if published else "apache-2.0",
        "paper_ids": "arXiv:2309.11523",
        "paper_name": "RMT: Retentive Networks Meet Vision Transformers",
        "origin_url": "https://arxiv.org/abs/2309.11523",
    }


def _first_conv(variant: Variant) -> str:
    return "stem.0" if variant.stem == "conv" else "stem.proj"


def _build(name: str, pretrained: bool, kwargs: dict[str, Any]) -> RMT | FeatureGetterNet:
    shipped = pretrained and not _names_weights(kwargs)
    if shipped and not _is_shipped(name, kwargs.get("pretrained_cfg")):
        raise ValueError(
            f"no weights of {name} are hosted: download the release's file and call "
            "rmt.load(PATH), or `rmt convert PATH OUT.safetensors`"
        )
    if kwargs.pop("output_stride", 32) != 32:
        raise ValueError("RMT has no dilated version; output_stride must be 32")
    device = kwargs.pop("device", None) or torch.get_default_device()
    dtype = kwargs.pop("dtype", None)
    known = ("num_classes", *OPTION_NAMES, *_TIMM_OPTIONS)
    variant = get_variant(name, **{k: v for k, v in kwargs.items() if k not in known})
    options = {k: v for k, v in kwargs.items() if k in known}
    starred = variant.published is not None and variant.published.top1_token_labels is not None
    if options.get("pretrained_cfg") == STARRED_TAG:
        options.setdefault("token_labels", True)
    elif options.get("token_labels") and starred and options.get("pretrained_cfg") is None:
        options["pretrained_cfg"] = STARRED_TAG  # timm passes None if the name has no tag
    if not shipped and name in OWN_VARIANTS and options.get("pretrained_cfg") is None:
        # timm would take the configuration of the weights: their classes and their transforms.
        options["pretrained_cfg"] = replace(default_cfgs[name].cfgs[""], architecture=name)
    # With a patch stem or an auxiliary head, layer names differ from the registered configuration.
    overlay: dict[str, Any] = {"first_conv": _first_conv(variant), "classifier": "head.fc"}
    if options.get("token_labels"):
        overlay["classifier"] = _STARRED_CLASSIFIERS
    options["pretrained_cfg_overlay"] = overlay | (options.get("pretrained_cfg_overlay") or {})

    def network(num_classes: int = 1000, **args: Any) -> RMT:
        return RMT(variant, num_classes, options=RMTOptions(**args))

    with torch.device(device):
        model = build_model_with_cfg(
            network,
            name,
            pretrained,
            feature_cfg={"out_indices": tuple(range(len(variant.depths))), "feature_cls": "getter"},
            **options,
        )
    if shipped and isinstance(model, RMT):
        _, description = read_safetensors(model.pretrained_cfg["file"])
        assert description is not None
        model.info = dict(description.info)
        if model.num_classes != description.config["num_classes"]:
            model.info.pop("label_names")
    return model.to(dtype)


def shipped_weights(name: str) -> str | None:
    """Return the name of the weights of a model in this package, None if there are none."""
    return next((each for each in SHIPPED_DIGESTS if each.partition(".")[0] == name), None)


def _is_shipped(name: str, tag: Any) -> bool:
    """Return whether this package has weights of a model, with this tag if it is not None."""
    if tag is None:
        return shipped_weights(name) is not None
    return f"{name}.{tag}" in SHIPPED_DIGESTS


def _names_weights(kwargs: dict[str, Any]) -> bool:
    """Return whether the caller named weights: a file, or a folder or repository for timm."""
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    return "pretrained_model_args" in kwargs or any(
        overlay.get(key) for key in ("file", "url", "state_dict", "hf_hub_id")
    )


def _entrypoint(name: str) -> Callable[..., RMT | FeatureGetterNet]:
    def build(pretrained: bool = False, **kwargs: Any) -> RMT | FeatureGetterNet:
        return _build(name, pretrained, kwargs)

    build.__name__ = build.__qualname__ = name  # timm registers an entry point under its name
    build.__doc__ = f"Build {name} (see rmt.variants)."
    return build


def _default_cfgs() -> dict[str, Any]:
    cfgs = {}
    for name, variant in VARIANTS.items():
        cfgs[f"{name}.{PLAIN_TAG}" if variant.published else name] = _default_cfg(variant)
        if variant.published and variant.published.top1_token_labels:
            cfgs[f"{name}.{STARRED_TAG}"] = _default_cfg(variant, starred=True)
    cfgs["rmt_nano.tiny_imagenet"] = _default_cfg(VARIANTS["rmt_nano"]) | {
        "file": str(SHIPPED / "rmt_nano.tiny_imagenet.safetensors"),
        "num_classes": 200,
        "input_size": (3, 64, 64),
        "pool_size": (2, 2),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "license": "other",
        "description": "trained on Tiny-ImageNet, whose terms are research and education",
    }
    return cfgs


default_cfgs = generate_default_cfgs(_default_cfgs())  # timm expects this name
for _name in VARIANTS:
    register_model(_entrypoint(_name))
