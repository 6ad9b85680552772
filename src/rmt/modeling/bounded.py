"""The model that a file describes, built without memory and within limits that its tensors set."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from rmt.messages import printable

M = TypeVar("M", bound=nn.Module)
# No option of a model is larger, unless a tensor has as many entries along an axis.
_LARGEST = 16_384
_LONGEST = 200
# Modules that a model has for each of its tensors: fewer than four, in all of timm.
_MODULES_PER_TENSOR = 16
# Options of timm's factory that fetch or read other files than the one at hand.
_FETCHING = ("pretrained", "checkpoint_path", "cache_dir")


def build_on_meta(
    from_config: Callable[[dict[str, Any]], M],
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    name: str,
) -> M:
    """Build the model of a configuration on the meta device, in bounded time and memory.

    Args:
        from_config: of the task.
        config: of the model.
        tensors: that the model shall take.
        name: of the file, for messages.

    Raises:
        ValueError: naming the option that is impossible or out of proportion to the tensors.
    """
    args = config["model_args"]
    _check_options(args, f"{name}: config.model_args", _bound(tensors))
    most = 1000 + _MODULES_PER_TENSOR * len(tensors)
    try:
        with torch.device("meta"), _at_most(most, len(tensors)):
            model = from_config(config)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:  # an option of a wrong kind can raise anything in a constructor
        guilty = _guilty(from_config, config, most)
        at = f"config.model_args.{guilty}" if guilty else "config.model_args"
        reason = f"{type(error).__name__}: {printable(error)}"
        shown = f" {printable(repr(args[guilty]), limit=60)}" if guilty else ""
        raise ValueError(
            f"{name}: {at}{shown} does not make a {printable(config['architecture'])} ({reason})"
        ) from error
    types = argument_types(type(model))
    for key, value in args.items():
        if key in types and not _fits(value, types[key]):
            raise ValueError(
                f"{name}: config.model_args.{printable(key)} is {printable(repr(value), limit=60)};"
                f" expected {_described(types[key])}"
            )
    return model


def argument_types(cls: type) -> dict[str, Any]:
    """Return the type of each argument of a constructor; a record's fields count as arguments."""
    types = get_type_hints(getattr(cls, "__init__"))  # noqa: B009 - of the class, not of object
    records = [part for hint in types.values() for part in (hint, *get_args(hint))]
    for record in filter(is_dataclass, records):
        for key, hint in get_type_hints(record).items():
            types[key] = types[key] | hint if key in types else hint
    return types


def _bound(tensors: Mapping[str, Tensor]) -> int:
    """Return the largest number that an option of a model with these tensors may have."""
    return max([_LARGEST, *(side for t in tensors.values() if t.numel() for side in t.shape)])


def _check_options(value: Any, at: str, most: int) -> None:
    """Raise for a number that is out of proportion, or for an option that fetches other files."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            inner = f"{at}.{printable(key)}"
            if str(key).startswith(_FETCHING):
                raise ValueError(
                    f"{inner} is {printable(repr(item), limit=60)}; all weights come from the file "
                    "itself, so leave it out"
                )
            _check_options(item, inner, most)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_options(item, at, most)
        total = sum(abs(n) for n in value if isinstance(n, int | float))
        if len(value) > most or total > 8 * most:
            raise ValueError(f"{at} is a list of {len(value)} that adds up to {total}; too much")
    elif isinstance(value, int | float) and not abs(value) <= most:
        raise ValueError(f"{at} is {value}; no tensor of the file is as large")
    elif isinstance(value, str) and len(value) > _LONGEST:
        raise ValueError(f"{at} is a text of {len(value):,} characters; no option is as long")


@contextmanager
def _at_most(modules: int, tensors: int) -> Iterator[None]:
    """Raise as soon as this thread has put more modules than that into others."""
    thread, count = threading.get_ident(), 0

    def hook(module: nn.Module, name: str, child: nn.Module | None) -> None:
        nonlocal count
        count += threading.get_ident() == thread
        if count > modules:
            raise ValueError(
                f"the described model has more than {modules} modules, and the file holds "
                f"{tensors} tensors"
            )

    handle = register_module_module_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _guilty(
    from_config: Callable[[dict[str, Any]], nn.Module], config: dict[str, Any], most: int
) -> str | None:
    """Return the argument without which the model can be built, None if there is not one."""
    args = config["model_args"]
    for key in args:
        rest = {name: value for name, value in args.items() if name != key}
        try:
            with torch.device("meta"), _at_most(most, 0):
                from_config(config | {"model_args": rest})
        except Exception:  # as above: it is not this one alone
            continue
        return key
    return None


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a plain value is of a type; lists stand for tuples, as in JSON."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return value in parts
    if kind in (int, float):
        allowed = int if kind is int else int | float
        return isinstance(value, allowed) and not isinstance(value, bool)
    if kind in (bool, str, type(None)):
        return isinstance(value, kind)
    if kind is tuple:
        return isinstance(value, list | tuple) and all(_fits(item, parts[0]) for item in value)
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return isinstance(value, Mapping)
    return True


def _described(hint: Any) -> str:
    """Return a type in words."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(_described(part) for part in parts)
    if kind is Literal:
        return " or ".join(map(repr, parts))
    if kind is tuple:
        return f"a list, each {_described(parts[0])}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return words.get(kind, "null" if kind is type(None) else "a mapping")
