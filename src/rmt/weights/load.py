"""Files of weights to models: the release's layouts and ours, each key accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmt.messages import did_you_mean, printable
from rmt.modeling.bounded import build_on_meta
from rmt.modeling.layers import ManhattanAttention
from rmt.modeling.pretrained import Pretrained
from rmt.modeling.rmt import RMT
from rmt.modeling.saved import find_weights, write_safetensors
from rmt.modeling.strict import build_with
from rmt.task import get_task
from rmt.variants import Variant
from rmt.weights.identify import Identified, Weights, identify
from rmt.weights.read import Content, read_file
from rmt.weights.release import check_geometry


def load(
    source: str | Path | Mapping[str, Any], *, weights: Weights | None = None, **overrides: Any
) -> Pretrained:
    """Build the model that some weights belong to, with the weights in it, in eval mode.

    Args:
        source: a file of the release (classification, detection or segmentation), a
            ``.safetensors`` or training ``.ckpt`` of ours, a folder of ``save_pretrained`` or of a
            training run, ``hf-hub:user/name``, the name of weights in this package
            (``rmt_nano.tiny_imagenet``), a classifier as timm, transformers or Lightning
            write it, or a state dict already in memory: the release's, or that of a classifier of
            ours in a shape that a variant has. Names may lie behind ``module.``, ``model.`` and
            the like.
        weights: ``"raw"`` or ``"ema"`` where a file holds both; None takes the published choice
            of a release file (EMA; raw for RMT-T), the better one of our own, and the EMA of
            others.
        **overrides: arguments of the model to change, such as ``min_size`` of a detector.

    Returns:
        An :class:`rmt.RMT` or another classifier of timm that a run trained, a detector or a
        segmenter.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, is not an RMT, has the layout of December 2023, keys
            that do not fit (all of them are listed), or numbers that are not weights.
    """
    if weights not in (None, "raw", "ema"):
        raise ValueError(f"weights is {weights!r}; choose 'raw' or 'ema', or None for the better")
    if isinstance(source, Mapping):
        name, content = "a state dict", Content(source)
    else:
        path = find_weights(source)
        name, content = printable(path, limit=1000), read_file(path)
    found = identify(content, name, weights=weights)
    try:
        task = get_task(found.description.task)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    renamed = found.renamed
    model: Pretrained = build_with(
        task.from_config,
        _with_overrides(found, overrides, name),
        found.tensors,
        name=name,
        unknown=renamed.unknown if renamed else (),
        name_in_file=renamed.name_in_file if renamed else None,
    )
    if renamed:
        check_geometry(renamed.geometry, *_geometry_of(model))
    model.info = dict(found.description.info)
    return model


def save(model: Pretrained, path: str | Path) -> Path:
    """Write a model of this package to one ``.safetensors`` file with its description.

    Raises:
        ValueError: if ``path`` has another suffix, or the model was fused or pruned.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} must end in .safetensors, the only format that is written")
    write_safetensors(path, model.tensors_to_save(), model.describe())
    return path


def convert(source: str | Path, destination: str | Path, *, weights: Weights | None = None) -> Path:
    """Read any file that :func:`load` reads and write it as ``.safetensors`` with metadata."""
    return save(load(source, weights=weights), destination)


def load_body(
    model: Pretrained, source: str | Path, *, weights: Weights | None = None
) -> list[str]:
    """Copy what fits of a trained network into another one, as fine-tuning starts.

    What belongs to single classes is copied only if both networks name the same classes in the
    same order, or one of them does not name any.

    Args:
        model: an :class:`rmt.RMT` of any number of classes, or a detector or segmenter.
        source: what :func:`load` reads: a classifier for any ``model``, or a dense model for a
            dense one, also of the other task; then the two share the backbone, and maybe more.
        weights: as in :func:`load`.

    Returns:
        The names in ``model`` that stay randomly initialised (heads of other classes, necks).

    Raises:
        ValueError: if the two bodies are of different variants, or of different networks of timm.
    """
    donor, target = load(source, weights=weights), model.state_dict()
    tensors = donor.state_dict()
    if not hasattr(donor, "backbone") and hasattr(model, "backbone"):  # a classifier's, to a dense
        tensors = {_in_backbone(key, target): value for key, value in tensors.items()}
    fitting = {
        key: value
        for key, value in target.items()
        if key in tensors and tensors[key].shape == value.shape
    }
    per_class = _per_class(model)
    body = [key for key in target if key.startswith(_body_names(model)) and key not in per_class]
    wrong = [key for key in body if key not in fitting]
    if wrong or not body:
        raise ValueError(
            f"{source} does not fit this model's body: {len(wrong)} of {len(body)} entries are "
            f"missing or of another shape, first {wrong[:1]}. Choose the variant it was made for"
        )
    ours, theirs = (list(network.info.get("label_names") or ()) for network in (model, donor))
    other_classes = per_class if ours and theirs and ours != theirs else set()
    copied = {key: tensors[key] for key in fitting if key not in other_classes}
    model.load_state_dict(target | copied, strict=True)
    return [key for key in target if key not in copied]


def _in_backbone(key: str, target: Mapping[str, Tensor]) -> str:
    """Return what a dense model calls a tensor of a classifier."""
    name = key.removeprefix("network.")
    # timm's extractor of feature maps writes the first level of some networks as ``stages_0``.
    flat = f"backbone.body.{name.replace('.', '_', 1)}"
    return flat if flat in target else f"backbone.body.{name}"


def _body_names(model: Pretrained) -> tuple[str, ...]:
    """Return how the names of the tensors of a model's body begin."""
    if isinstance(model, RMT):
        return ("stem.", "stages.")
    return ("backbone.body.",) if hasattr(model, "backbone") else ("network.",)


def _per_class(model: Pretrained) -> set[str]:
    """Return the entries whose shape depends on the number of classes."""
    config = model.config
    with torch.device("meta"):
        other = type(model).from_config(config | {"num_classes": config["num_classes"] + 1})
    shapes = {key: value.shape for key, value in other.state_dict().items()}
    return {key for key, value in model.state_dict().items() if shapes[key] != value.shape}


def _with_overrides(found: Identified, overrides: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the configuration of a described model with some of its arguments changed.

    Raises:
        ValueError: for an argument that the model does not have, or that belongs to the weights.
    """
    if "num_classes" in overrides:
        raise ValueError(
            "num_classes belongs to the weights: call reset_classifier(N) on the loaded "
            "classifier, or start a training from the file (--model.checkpoint)"
        )
    task, config = get_task(found.description.task), found.description.config
    args = config["model_args"]
    if overrides and task.name != "classification":  # an RMT checks its own options
        described = build_on_meta(task.from_config, config, found.tensors, name=name)
        known = described.config["model_args"]
        for option in overrides:
            if option not in known:
                of = config["architecture"]
                raise ValueError(f"unknown option {option!r} of {of}{did_you_mean(option, known)}")
    return config | {"model_args": args | overrides}


def _geometry_of(model: Pretrained) -> tuple[Variant, dict[int, tuple[float, ...] | None]]:
    """Return the variant of a model's body and log γ of each stage's heads."""
    body = model.body
    assert isinstance(body, RMT)
    rates = {
        i: next(m for m in stage.modules() if isinstance(m, ManhattanAttention)).log_decay
        for i, stage in enumerate(body.stages)
    }
    return body.variant, rates
