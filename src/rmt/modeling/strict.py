"""Tensors into a new model: every name and shape is compared before the model takes memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
_MOST_LISTED = 40


def build_with(
    from_config: Callable[[dict[str, Any]], M],
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    name: str,
    unknown: Iterable[str] = (),
    name_in_file: Callable[[str], str] | None = None,
) -> M:
    """Build the model of a configuration with given weights in it, in evaluation mode.

    Args:
        from_config: of the task.
        config: of the model.
        tensors: all of its state dict.
        name: of the file, for messages.
        unknown: the file's names of what else is in it, which is an error.
        name_in_file: what the file calls, or would call, a tensor of ours; None where it uses our
            names.

    Raises:
        ValueError: if there is no such model, or a tensor is too much, missing or of another
            shape; all are listed.
    """
    try:
        with torch.device("meta"):
            wanted = from_config(config).state_dict()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    lines = _differences(tensors, wanted, name_in_file or str)
    lines = [f"+ {key}" for key in unknown] + lines
    if lines:
        rest = len(lines) - _MOST_LISTED
        listed = "\n  ".join(lines[:_MOST_LISTED]) + (f"\n  … {rest} more" if rest > 0 else "")
        names = " (this package's names in brackets)" if name_in_file else ""
        raise ValueError(f"{name} does not fit the model it looks like{names}:\n  {listed}")
    model = from_config(config)
    model.load_state_dict(dict(tensors), strict=True)
    return model.eval()


def _differences(
    given: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    name_in_file: Callable[[str], str],
) -> list[str]:
    """Return a line for each tensor that is too much (+), missing (−) or of another shape (≠)."""

    def shown(key: str) -> str:
        theirs = name_in_file(key)
        return key if theirs == key else f"{theirs} ({key})"

    lines = [f"+ {name_in_file(key)}" for key in given if key not in wanted]
    lines += [f"− {shown(key)}" for key in wanted if key not in given]
    lines += [
        f"≠ {shown(key)}: {tuple(given[key].shape)} in the file, {tuple(wanted[key].shape)} here"
        for key in given
        if key in wanted and given[key].shape != wanted[key].shape
    ]
    return lines
