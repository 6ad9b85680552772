"""What a file of weights is: one look finds the model's description and its tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from rmt.messages import printable
from rmt.modeling.saved import Description
from rmt.modeling.strict import check_tensors
from rmt.untrusted import Field
from rmt.variants import VARIANTS
from rmt.weights.layouts import LAYOUTS, Layout, State
from rmt.weights.read import Content, described_beside
from rmt.weights.release import Renamed, depths_of_release, rename
from rmt.weights.templates import Rule, Template

log = logging.getLogger(__name__)

Weights = Literal["raw", "ema"]

# Tensors in a training checkpoint of ours (Lightning's file) have these prefixes.
_OURS = {"raw": "model.", "ema": "ema.module."}
# Entries that hold a state dict: the release's classifiers, Lightning, mmdet and mmseg, timm.
_ENTRIES = {"raw": ("model", "state_dict"), "ema": ("model_ema", "state_dict_ema")}
# Modules that others put around a network: DataParallel, torch.compile, Lightning, transformers ...
_WRAPPERS = {"module", "_orig_mod", "model", "timm_model", "backbone", "net", "network", "encoder"}
_UNCHANGED = (Rule("{rest}", "{rest}"),)


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


def identify(content: Content, name: str, *, weights: Weights | None = None) -> Identified:
    """Find out which model a file holds.

    Args:
        content: of the file.
        name: of the file, for messages.
        weights: ``"raw"`` or ``"ema"`` where it holds both; None takes the published choice of a
            release file (EMA; raw for RMT-T), the EMA of others, and the better one of a run of
            ours.

    Raises:
        ValueError: if it holds no model that is known here, or not the wanted ``weights``.
    """
    if content.description is not None:
        _only(content.description.info.get("weights", "raw"), weights, name)
        return Identified(content.description, _tensors(content.entries, content, name))
    if "rmt" in content.entries and not isinstance(content.entries["rmt"], Tensor):
        return _from_training(content, weights, name)
    state, chosen = _choose_weights(content, weights, name)
    layout, prefix = _layout_of(state, name)
    inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if len(inner) < len(state):
        others = [printable(key) for key in state if not key.startswith(prefix)]
        log.warning(
            "%s: the network lies behind %r; %d other tensors were left out, first %s",
            name, prefix, len(others), ", ".join(others[:3]),
        )  # fmt: skip
    found = _describe(layout, inner, content, name)
    found = replace(found, info=found.info | {"source": Path(name).name, "weights": chosen})
    if not (layout.rules or prefix):
        return Identified(found, inner)
    renamed = rename(inner, layout.rules or _UNCHANGED, prefix=prefix)
    return Identified(found, renamed.tensors, renamed)


def _describe(layout: Layout, state: State, content: Content, name: str) -> Description:
    """Return what a file of others says of its model, and what its tensors say."""
    said = content.entries.get("meta")
    if not layout.rules:
        said = {"architecture": content.entries.get("arch")}  # by timm's training script
        if said["architecture"] not in tuple(VARIANTS):
            ours, said = described_beside(content.path) if content.path else (None, {})
            if ours is not None:
                return ours
    try:
        found = layout.describe(state, said if isinstance(said, Mapping) else {})
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return Description.read(found.as_dict(), name)


def _from_training(content: Content, weights: Weights | None, name: str) -> Identified:
    """Return what a training checkpoint of ours holds."""
    hint = "Take another checkpoint of the run (last.ckpt, best.ckpt) or its model.safetensors"
    kept = Field(content.entries["rmt"], f"{name}: 'rmt'", hint=hint)
    found = Description.read(kept["description"].value, f"{name}: rmt.description")
    chosen = weights or kept["best"]["weights"].one_of(*_OURS)
    prefix = _OURS[chosen]
    state = _tensors(content.entries.get("state_dict"), content, name)
    tensors = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not tensors:
        raise ValueError(f"{name} holds no {chosen!r} weights: its run kept no weight average")
    return Identified(replace(found, info=found.info | {"weights": chosen}), tensors)


def _choose_weights(
    content: Content, weights: Weights | None, name: str
) -> tuple[State, Literal["raw", "ema"]]:
    """Pick a state dict out of a file of others, and say which it is."""
    holds: dict[Weights, Any] = {}
    for kind in ("raw", "ema"):
        for key in _ENTRIES[kind]:
            if _is_entry(held := content.entries.get(key)):
                holds.setdefault(kind, held)
    if not holds:
        _only("raw", weights, name)
        return _tensors(content.entries, content, name), "raw"
    if len(holds) == 1:
        ((chosen, held),) = holds.items()
        _only(chosen, weights, name)
        return _tensors(held, content, name), chosen
    # The published number is the best EMA epoch, but for RMT-T, whose average stayed behind.
    raw = _tensors(holds["raw"], content, name)
    tiny = depths_of_release(raw) == VARIANTS["rmt_t"].depths
    chosen = weights or ("raw" if tiny else "ema")
    return (raw if chosen == "raw" else _tensors(holds["ema"], content, name)), chosen


def _is_entry(held: Any) -> bool:
    """Return whether an entry of a file is something: neither absent, nor empty, nor a tensor."""
    empty = isinstance(held, Mapping) and not held
    return held is not None and not empty and not isinstance(held, Tensor)


def _only(kind: str, weights: Weights | None, name: str) -> None:
    """Refuse to call the one kind of weights that a file holds the other one."""
    if weights not in (None, kind):
        raise ValueError(f"{name} holds {kind!r} weights only, no {weights!r} ones")


def _tensors(state: Any, content: Content, name: str) -> State:
    """Return a state dict, made sure that it is one.

    Raises:
        ValueError: if it is something else, or makes false claims of its size.
    """
    entries = state.items() if isinstance(state, Mapping) else ()
    if not entries or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in entries):
        held = [str(k)[:200] for k, _ in list(entries)[:8] if isinstance(k, str | int)]
        raise ValueError(
            f"{name} holds no weights: names of tensors were expected, alone or under 'model', "
            "'model_ema', 'state_dict' or 'state_dict_ema', and there is "
            f"{held if isinstance(state, Mapping) else type(state).__name__}"
        )
    if content.path is not None:
        check_tensors(state, name, size=content.path.stat().st_size)
    return state


def _layout_of(state: State, name: str) -> tuple[Layout, str]:
    """Return the layout of a state dict, and what others have put before the names.

    Raises:
        ValueError: if there is none, or if two networks are there.
    """
    for layout in LAYOUTS:
        sentinel = Template(layout.sentinel)
        found = {prefix for key in state if (prefix := sentinel.behind(key)) is not None}
        prefixes = sorted(p for p in found if _WRAPPERS.issuperset(p.split(".")[:-1]))
        if len(prefixes) > 1:
            raise ValueError(
                f"{name} holds several networks, behind {' and '.join(map(repr, prefixes))}; save "
                "the state dict of one of them"
            )
        if prefixes:
            return layout, prefixes[0]
    first = [key[:200] for key in list(state)[:3]]
    raise ValueError(f"{name}: its keys are of no known model, first {first}")
