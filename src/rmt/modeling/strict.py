"""Tensors into a new model: all is compared before the model takes memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rmt.messages import printable
from rmt.modeling.bounded import build_on_meta

M = TypeVar("M", bound=nn.Module)
_MOST_LISTED = 40
# Ours have fewer than 2,000, and no body of timm more than 6,000.
_MOST_TENSORS = 20_000
_LONGEST_NAME = 512


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
        ValueError: if the configuration does not make a model, or a tensor is too much, missing,
            of another shape or kind, NaN or infinite; all are listed.
    """
    wanted = build_on_meta(from_config, config, tensors, name=name).state_dict()
    names = name_in_file or str
    lines = [f"+ {printable(key)}" for key in unknown] + _differences(tensors, wanted, names)
    if lines:
        rest = len(lines) - _MOST_LISTED
        listed = "\n  ".join(lines[:_MOST_LISTED]) + (f"\n  … {rest} more" if rest > 0 else "")
        brackets = " (this package's names in brackets)" if name_in_file else ""
        raise ValueError(f"{name} does not fit the model it looks like{brackets}:\n  {listed}")
    for key, tensor in tensors.items():
        _check_values(tensor, wanted[key], f"{name}: {printable(names(key))}")
    model = from_config(config)
    model.load_state_dict(dict(tensors), strict=True)
    return model.eval()


def check_tensors(tensors: Mapping[str, Tensor], name: str, *, size: int) -> None:
    """Raise ``ValueError`` unless the tensors of a file can be those of a model.

    A file may claim far more numbers than it holds, by tensors that repeat one number.

    Args:
        tensors: under the file's names.
        name: of the file, for messages.
        size: of the file in bytes.
    """
    if len(tensors) > _MOST_TENSORS:
        raise ValueError(f"{name} holds {len(tensors):,} tensors; no model here has so many")
    claimed, stored = 0, {}
    for key, tensor in tensors.items():
        shown = f"{name}: {printable(key)}"
        if len(key) > _LONGEST_NAME:
            raise ValueError(f"{shown} is a name of {len(key):,} characters; no tensor has such")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            raise ValueError(f"{shown} is a sparse, quantized or nested tensor; save it dense")
        if tensor.is_meta:
            continue
        storage = tensor.untyped_storage()
        claimed += tensor.nbytes
        stored[storage.data_ptr()] = storage.nbytes()
        if tensor.nbytes > storage.nbytes():
            raise ValueError(
                f"{shown} of shape {tuple(tensor.shape)} repeats {storage.nbytes()} bytes; save "
                "it whole (tensor.clone())"
            )
    held = min(size, sum(stored.values()))
    if claimed > 4 * held:
        raise ValueError(
            f"{name} claims {claimed:,} bytes of tensors and holds {held:,}: many share their "
            "numbers; save each whole (tensor.clone())"
        )


def _differences(
    given: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    name_in_file: Callable[[str], str],
) -> list[str]:
    """Return a line for each tensor that is too much (+), missing (−) or of another shape (≠)."""

    def shown(key: str) -> str:
        theirs = name_in_file(key)
        return printable(key if theirs == key else f"{theirs} ({key})")

    lines = [f"+ {printable(name_in_file(key))}" for key in given if key not in wanted]
    lines += [f"− {shown(key)}" for key in wanted if key not in given]
    lines += [
        f"≠ {shown(key)}: {tuple(given[key].shape)} in the file, {tuple(wanted[key].shape)} here"
        for key in given
        if key in wanted and given[key].shape != wanted[key].shape
    ]
    return lines


def _check_values(given: Tensor, wanted: Tensor, shown: str) -> None:
    """Raise unless a tensor can be copied into another without a change of meaning."""
    alike = given.is_floating_point() if wanted.is_floating_point() else given.dtype == wanted.dtype
    if not alike:
        raise ValueError(
            f"{shown} holds {_kind(given)} numbers and the model {_kind(wanted)} ones; save it "
            f"as {_kind(wanted)}"
        )
    if given.is_meta:
        raise ValueError(f"{shown} has a shape and no numbers (it is on the meta device)")
    if given.is_floating_point() and given.numel():
        numbers = given if given.element_size() > 1 else given.float()
        low, high = numbers.aminmax()  # both are NaN if one number is
        if not (low.isfinite() and high.isfinite()):
            which = "NaN" if low.isnan() else "infinity"
            raise ValueError(
                f"{shown} holds {which}: these weights can give no results. If it was a training "
                "that diverged, take an earlier checkpoint of it"
            )


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
