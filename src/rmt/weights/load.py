"""Files of weights to models: the release's layouts and ours, each key accounted for."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
from torch import Tensor

from rmt import classification, detection, segmentation
from rmt.messages import did_you_mean
from rmt.modeling.layers import ManhattanAttention
from rmt.modeling.pretrained import (
    Pretrained,
    find_weights,
    info_of,
    read_safetensors,
    write_safetensors,
)
from rmt.modeling.rmt import RMT
from rmt.task import get_task
from rmt.variants import VARIANTS, Variant
from rmt.weights.release import Renamed, check_geometry, depths_of_release, rename

Weights = Literal["raw", "ema"]
# Tensors of a training checkpoint of ours (Lightning's file) under these prefixes.
_OURS = {"raw": "model.", "ema": "ema.module."}


def load(
    source: str | Path | Mapping[str, Any], *, weights: Weights | None = None, **overrides: Any
) -> Pretrained:
    """Build the model that some weights belong to, with the weights in it, in eval mode.

    Args:
        source: a file of the release (classification, detection or segmentation), a
            ``.safetensors`` or training ``.ckpt`` of ours, a folder of ``save_pretrained`` or of a
            training run, ``hf-hub:user/name``, or a state dict already in memory: the release's,
            or that of a classifier of ours in a shape that a variant has.
        weights: ``"raw"`` or ``"ema"`` where a file holds both; None takes the published choice
            of a release file (EMA; raw for RMT-T) and the better one of our own.
        **overrides: arguments of the model to change, such as ``min_size`` of a detector.

    Returns:
        An :class:`rmt.RMT`, a detector or a segmenter.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, is no RMT, is the layout of December 2023, or has keys
            that do not fit (all of them are listed).
    """
    if weights not in (None, *_OURS):
        raise ValueError(f"weights is {weights!r}; choose 'raw' or 'ema', or None for the better")
    if isinstance(source, Mapping):
        return _from_release(source, weights, overrides, "a state dict")
    path = find_weights(source)
    if path.suffix == ".safetensors":
        tensors, description = read_safetensors(path)
        _only(description.get("weights", "raw"), weights, str(path))
        return _build(tensors, description, overrides, str(path))
    content = read_pickle(path)
    if "rmt" in content:
        return _from_training(content, weights, overrides, str(path))
    return _from_release(content, weights, overrides, str(path))


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


def read_pickle(path: str | Path) -> dict[str, Any]:
    """Read a ``.pth`` or ``.ckpt`` without running any code from it.

    ``argparse.Namespace`` is let in: the release's files keep their command line in one.

    Raises:
        ValueError: if the file is damaged, or would need more than tensors and plain values.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, MemoryError):
        raise  # the machine's fault, not the file's
    except Exception as error:  # bytes of chance can raise anything in the unpickler
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, UnpicklingError) and wanted:
            raise ValueError(
                f"{path} was not read: it asks to run {wanted[1]!r} on loading, and only tensors "
                "and plain values are accepted"
            ) from error
        raise ValueError(f"{path} is damaged or no checkpoint ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of tensors")
    return content


def load_body(
    model: Pretrained, source: str | Path, *, weights: Weights | None = None
) -> list[str]:
    """Copy what fits of a trained network into another one, as fine-tuning starts.

    What belongs to single classes is copied only if both networks name the same classes in the
    same order, or one of them does not name any.

    Args:
        model: an :class:`rmt.RMT` of any number of classes, or a detector or segmenter.
        source: what :func:`load` reads: a classifier for any ``model``, a dense model for a dense
            one, be its task another; then the two share the backbone, and maybe more.
        weights: as in :func:`load`.

    Returns:
        The names in ``model`` that kept their fresh values (heads of other classes, necks).

    Raises:
        ValueError: if the two bodies are of different variants, or of different networks of timm.
    """
    donor = load(source, weights=weights)
    target = model.state_dict()
    prefix = "" if isinstance(model, RMT) else "backbone.body."
    if isinstance(donor, RMT):
        tensors = {prefix + key: value for key, value in donor.state_dict().items()}
    else:
        tensors = donor.state_dict()
    body = [k for k in target if k.startswith(prefix or ("stem.", "stages."))]
    wrong = [k for k in body if k not in tensors or tensors[k].shape != target[k].shape]
    if wrong or not body:
        raise ValueError(
            f"{source} does not fit this model's body: {len(wrong)} of {len(body)} entries are "
            f"absent or of another shape, first {wrong[:1]}. Choose the variant it was made for"
        )
    fitting = {k: v for k, v in tensors.items() if k in target and v.shape == target[k].shape}
    ours, theirs = (list(network.info.get("label_names") or ()) for network in (model, donor))
    if ours and theirs and ours != theirs:
        single = _per_class(model)
        fitting = {k: v for k, v in fitting.items() if k not in single}
    model.load_state_dict(target | fitting, strict=True)
    return [key for key in target if key not in fitting]


def _per_class(model: Pretrained) -> set[str]:
    """Return the entries whose shape depends on the number of classes."""
    config = model.config
    with torch.device("meta"):
        other = type(model).from_config(config | {"num_classes": config["num_classes"] + 1})
    shapes = {key: value.shape for key, value in other.state_dict().items()}
    return {key for key, value in model.state_dict().items() if shapes[key] != value.shape}


def _from_training(
    content: dict, weights: Weights | None, overrides: dict, name: str
) -> Pretrained:
    kept = content["rmt"]
    chosen = weights or kept["best"]["weights"]
    prefix = _OURS[chosen]
    state = content["state_dict"]
    tensors = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not tensors:
        raise ValueError(f"{name} holds no {chosen!r} weights: its run kept no weight average")
    return _build(tensors, kept["description"] | {"weights": chosen}, overrides, name)


def _from_release(
    content: Mapping[str, Any], weights: Weights | None, overrides: dict, name: str
) -> Pretrained:
    state, chosen = _choose_weights(content, weights, name)
    meta = content.get("meta", {}) if isinstance(content.get("meta"), dict) else {}
    if ours := classification.config_of_ours(state):
        return _build(dict(state), ours, overrides, name)
    try:
        configs = (
            (task, task.config_of_release(state, meta))
            for task in (classification, detection, segmentation)
        )
        task, config = next(((task, found) for task, found in configs if found), (None, None))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if task is None:
        raise ValueError(f"{name}: its keys are of no known model, first {list(state)[:3]}")
    renamed = rename(state, task.RULES)
    assert config is not None  # of the task that recognised it
    description = config | {"source": Path(name).name, "weights": chosen}
    model = _build(renamed.tensors, description, overrides, name, renamed)
    check_geometry(state, *_geometry(model))
    return model


def _choose_weights(
    content: Mapping[str, Any], weights: Weights | None, name: str
) -> tuple[Mapping[str, Tensor], str]:
    """Pick a state dict out of a release file, and say which it is."""
    if "state_dict" in content:  # detection and segmentation
        _only("raw", weights, name)
        return _tensors(content["state_dict"], name), "raw"
    holds = {"raw": content.get("model"), "ema": content.get("model_ema")}
    if not any(holds.values()):
        _only("raw", weights, name)
        return _tensors(content, name), "raw"
    # The published number is the best EMA epoch, but for RMT-T, whose average stayed behind.
    first = _tensors(next(state for state in holds.values() if state), name)
    tiny = depths_of_release(first) == VARIANTS["rmt_t"].depths
    chosen = weights or ("raw" if (tiny and holds["raw"]) or not holds["ema"] else "ema")
    if not holds[chosen]:
        _only(next(kind for kind, state in holds.items() if state), chosen, name)
    return _tensors(holds[chosen], name), chosen


def _only(kind: str, weights: Weights | None, name: str) -> None:
    """Refuse to call the one kind of weights that a file holds the other one."""
    if weights not in (None, kind):
        raise ValueError(f"{name} holds {kind!r} weights only, no {weights!r} ones")


def _tensors(state: Any, name: str) -> Mapping[str, Tensor]:
    if isinstance(state, Mapping) and state and all(isinstance(v, Tensor) for v in state.values()):
        return state
    held = list(state)[:8] if isinstance(state, Mapping) else type(state).__name__
    raise ValueError(
        f"{name} holds no weights: names of tensors were expected, alone or under 'model', "
        f"'model_ema' or 'state_dict', and there is {held}"
    )


def _build(
    tensors: dict[str, Tensor],
    description: dict[str, Any],
    overrides: dict[str, Any],
    name: str,
    renamed: Renamed | None = None,
) -> Pretrained:
    if "num_classes" in overrides:
        raise ValueError(
            "num_classes belongs to the weights: call reset_classifier(N) on the loaded "
            "classifier, or start a training from the file (--model.checkpoint)"
        )
    if overrides and description["task"] != "classification":  # an RMT checks its own options
        _check_options(overrides, description)
    config = dict(description)
    config["model_args"] = description["model_args"] | overrides
    model = get_task(description["task"]).from_config(config)
    _account(tensors, model.state_dict(), name, renamed or Renamed())
    model.load_state_dict(tensors, strict=True)
    model.info = info_of(description)
    return model.eval()


def _check_options(overrides: dict[str, Any], description: dict[str, Any]) -> None:
    """Raise for an option that the described model, fresh on the meta device, has not."""
    with torch.device("meta"):
        known = get_task(description["task"]).from_config(description).config["model_args"]
    for option in overrides:
        if option not in known:
            of = description["architecture"]
            raise ValueError(f"unknown option {option!r} of {of}{did_you_mean(option, known)}")


def _account(
    given: dict[str, Tensor], wanted: dict[str, Tensor], name: str, renamed: Renamed
) -> None:
    """Raise with the list of all keys that are too many (+), missing (−) or of another shape.

    They stand under the file's names, with ours in brackets.
    """

    def shown(key: str) -> str:
        theirs = renamed.name_in_file(key)
        return key if theirs == key else f"{theirs} ({key})"

    lines = [f"+ {key}" for key in renamed.unknown]
    lines += [f"+ {renamed.sources.get(key, key)}" for key in given if key not in wanted]
    lines += [f"− {shown(key)}" for key in wanted if key not in given]
    lines += [
        f"≠ {shown(key)}: {tuple(given[key].shape)} in the file, {tuple(wanted[key].shape)} here"
        for key in given
        if key in wanted and given[key].shape != wanted[key].shape
    ]
    if lines:
        listed = "\n  ".join(lines[:40]) + (f"\n  … {len(lines) - 40} more" if lines[40:] else "")
        names = " (this package's names in brackets)" if renamed.rules else ""
        raise ValueError(f"{name} does not fit the model it looks like{names}:\n  {listed}")


def _geometry(model: Pretrained) -> tuple[Variant, dict[int, tuple[float, ...] | None]]:
    """Return the variant of a model's body and log γ of each stage's heads."""
    body = model.body
    assert isinstance(body, RMT)
    rates = {
        i: next(m for m in stage.modules() if isinstance(m, ManhattanAttention)).log_decay
        for i, stage in enumerate(body.stages)
    }
    return body.variant, rates
