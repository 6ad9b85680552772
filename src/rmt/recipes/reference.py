"""Every key of a recipe with its values, default and meaning, as the schema states them."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from textwrap import fill
from typing import Any, Literal

from rmt.recipes.schema import RANGE, Recipe


@dataclass(frozen=True)
class Key:
    """A key of a recipe.

    Attributes:
        path: dotted name, such as ``data.batch_size``.
        values: what it may be, in words.
        default: of the task, if the recipe does not state it.
        meaning: from the schema's docstring, with ``code`` between double backquotes.
        section: the record that holds it.
    """

    path: str
    values: str
    default: Any
    meaning: str
    section: type


def keys(kind: type[Recipe]) -> list[Key]:
    """Return the keys of a task's recipes, in the order in which they are written."""
    return list(_keys(kind, ""))


def help_keys(recipe: Recipe, values: Mapping[str, Any]) -> str:
    """Return the keys of a recipe as text: value, what it may be, and meaning.

    Args:
        recipe: whose task's keys are described.
        values: the recipe as :func:`rmt.recipes.as_dict` returns it.
    """
    lines = []
    for key in keys(type(recipe)):
        own: Any = values
        for part in key.path.split("."):
            own = own[part]
        default = "" if own == _plain(key.default) else f"; default {_shown(key.default)}"
        lines.append(f"--{key.path} {_shown(own)}   ({key.values}{default})")
        lines.append(fill(key.meaning.replace("``", ""), 96, initial_indent=" " * 4,
                          subsequent_indent=" " * 4))  # fmt: skip
    return "\n".join(lines)


def page(kinds: Mapping[str, type[Recipe]]) -> str:
    """Return the reference of the keys of all tasks as Markdown.

    Args:
        kinds: task -> class of its recipes.
    """
    found = {task: keys(kind) for task, kind in kinds.items()}
    shared = set.intersection(*({key.section for key in own} for own in found.values()))
    parts = [_HEAD.strip(), "## All tasks"]
    parts += _sections([k for k in keys(Recipe) if k.section in shared or "." not in k.path])
    for task, own in found.items():
        parts.append(f"## {task.capitalize()}")
        parts += _sections([k for k in own if k.section not in shared and "." in k.path])
    return "\n\n".join(parts) + "\n"


_HEAD = """
# Recipe keys

Every key of a recipe; `rmt train RECIPE --help-keys` prints those of one recipe with its values.
Any key can be set on the command line, as in `--data.batch_size 32`. This page is written from the
schema by `python -m rmt.tools.reference`.
"""


def _keys(kind: type, prefix: str) -> Iterator[Key]:
    hints, meanings = typing.get_type_hints(kind), _meanings(kind)
    for each in dataclasses.fields(kind):
        hint = hints[each.name]
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _keys(hint, f"{prefix}{each.name}.")
            continue
        default = each.default
        if default is dataclasses.MISSING:
            factory: Any = each.default_factory
            default = "" if factory is dataclasses.MISSING else factory()
        values = _values(hint)
        if RANGE in each.metadata:
            values += f", {each.metadata[RANGE]}"
        yield Key(prefix + each.name, values, default, meanings[each.name], kind)


def _meanings(kind: type) -> dict[str, str]:
    """Return what the docstrings of a record and its bases say about each attribute."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        _, _, listed = text.partition("Attributes:\n")
        for entry in re.finditer(r"^    (\w+): ((?:.|\n(?=     ))*)", listed, flags=re.M):
            found[entry[1]] = " ".join(entry[2].split())
    return found


def _values(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        *others, last = map(str, inner)
        return f"{', '.join(others)} or {last}" if others else last
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_values(each) for each in inner)
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return f"list of {_NAMES[inner[0]]}s"
        return f"{len(inner)} {_NAMES[inner[0]]}s"
    return _NAMES.get(origin or hint) or str(hint)


_NAMES = {
    int: "whole number",
    float: "number",
    str: "text",
    bool: "true or false",
    dict: "mapping",
    type(None): "null",
}


def _sections(own: list[Key]) -> list[str]:
    names = dict.fromkeys(key.path.rpartition(".")[0] for key in own)
    parts = []
    for name in names:
        inside = [key for key in own if key.path.rpartition(".")[0] == name]
        if name:
            about = inspect.cleandoc(inside[0].section.__doc__ or "").partition("\n")[0]
            parts.append(f"### {name}\n\n{_markdown(about)}")
        rows = [
            f"| `{key.path}` | `{_shown(key.default)}` | {key.values} | {_markdown(key.meaning)} |"
            for key in inside
        ]
        parts.append(
            "\n".join(["| key | default | values | meaning |", "|---|---|---|---|", *rows])
        )
    return parts


def _markdown(text: str) -> str:
    return text.replace("``", "`").replace("|", r"\|")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    """Return a value as YAML writes it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_shown(item) for item in value)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if value == "" else str(value)
