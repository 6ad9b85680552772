"""Experiments as data: one small YAML file per published row, checked against typed records."""

from __future__ import annotations

import copy
import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rmt.messages import did_you_mean
from rmt.recipes.schema import Published, Recipe
from rmt.untrusted import read_yaml

FOLDER = Path(__file__).parent
R = TypeVar("R", bound=Recipe)


def list_recipes() -> list[str]:
    """Return the names of the shipped recipes, such as ``imagenet/rmt_s``."""
    return sorted(str(p.relative_to(FOLDER).with_suffix("")) for p in FOLDER.rglob("*.yaml"))


def summaries() -> list[str]:
    """Return a line for each shipped recipe: its name and title."""
    names = list_recipes()
    width = max(map(len, names))
    return [f"{name:<{width}}  {read(name)['title']}" for name in names]


def read(name: str | Path) -> dict[str, Any]:
    """Read a shipped recipe by name, or a YAML file by path, as it is written.

    Raises:
        ValueError: if there is none (the nearest shipped one is named), or it is not a recipe.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{name}.yaml"
        if not path.is_file():
            raise ValueError(
                f"there is no recipe {str(name)!r}{did_you_mean(str(name), list_recipes())}; "
                "`rmt train --list` shows all; to use a file of your own, give its path with .yaml"
            )
    if not path.is_file():
        raise ValueError(f"there is no recipe file {str(path)!r}")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error}); save it as UTF-8") from error
    if not isinstance(content, dict) or "task" not in content:
        raise ValueError(f"{path} is not a recipe: it must be a mapping with the key 'task'")
    return content


def resolve(kind: type[R], content: Mapping[str, Any], overrides: Sequence[str] = ()) -> R:
    """Fill a recipe's defaults, apply overrides and check every type.

    Args:
        kind: the task's recipe record.
        content: of the recipe file.
        overrides: command-line options, ``--data.root DIR`` or ``--data.root=DIR``; ``-`` in a key
            stands for ``_``.

    Raises:
        ValueError: for an unknown key (the nearest is named) or a value of a wrong type.
    """
    content = _merged(content, overrides)
    _known_keys(kind, content)
    # Imported here: models and training run where jsonargparse is missing.
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--recipe", type=kind)
    try:
        return parser.instantiate(parser.parse_object({"recipe": content})).recipe
    except ArgumentError as error:
        raise ValueError(f"wrong value in the recipe: {error}".replace('"recipe.', '"')) from error
    except OverflowError as error:
        keys = ", ".join(_too_large(content))
        raise ValueError(f"wrong value in the recipe: {keys} is too large a number") from error


def of_another_model(name: str | Path, content: Mapping[str, Any], recipe: R) -> R:
    """Return a recipe with a title of its own if options have changed the model of its file.

    The published numbers do not belong to the changed model and are dropped.

    Args:
        name: of the recipe.
        content: of its file.
        recipe: resolved, with the options.
    """
    now = as_dict(recipe)["model"]
    before = dataclasses.asdict(type(recipe.model)()) | dict(content.get("model", {}))
    changed = [
        f"model.{key} {now[key]}"
        for key in ("name", "backbone", "head", "token_labels")
        if key in now and now[key] != before[key]
    ]
    if not changed:
        return recipe
    title = recipe.title
    if title == content.get("title", ""):
        title = f"{name} with {', '.join(changed)}"
    return dataclasses.replace(recipe, title=title, published=Published())


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as plain JSON values, every field written out."""
    return _plain(dataclasses.asdict(recipe))


def _known_keys(kind: type, content: Mapping[str, Any], prefix: str = "") -> None:
    fields = _fields(kind)
    for key, value in content.items():
        if key not in fields:
            known = {path.rsplit(".", 1)[-1]: path for path in _paths(kind, prefix)}
            hint = (
                f"; did you mean {known[key]!r}?"
                if key in known
                else did_you_mean(str(key), fields)
            )
            raise ValueError(f"unknown recipe key {prefix + str(key)!r}{hint}")
        if dataclasses.is_dataclass(fields[key]):
            if not isinstance(value, Mapping):
                raise ValueError(
                    f"recipe key {prefix + key!r} is {value!r}, but it is a section: give its "
                    f"keys, such as {next(_paths(fields[key], f'{prefix}{key}.'))}"
                )
            _known_keys(fields[key], value, f"{prefix}{key}.")
        elif value is None and type(None) not in typing.get_args(fields[key]):
            # jsonargparse takes it for a field that is one of several words.
            raise ValueError(f"recipe key {prefix + key!r} is null; give a value or leave it out")


def _too_large(content: Any, path: str = "") -> Iterator[str]:
    """Yield the keys of whole numbers, also as text, that no float can hold."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _too_large(value, f"{path}.{key}".lstrip("."))
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _too_large(value, path)
    else:
        try:
            float(int(content))
        except OverflowError:
            yield path
        except (TypeError, ValueError):  # not a whole number
            pass


def _fields(kind: type) -> dict[str, Any]:
    """Return the type of each field; class variables, such as a section's key, are left out."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _paths(kind: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every key of a recipe."""
    for key, value in _fields(kind).items():
        if dataclasses.is_dataclass(value) and isinstance(value, type):
            yield from _paths(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _merged(content: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the recipe with command-line options applied; their values stay text until checked."""
    merged = copy.deepcopy(dict(content))
    given = iter(overrides)
    for option in given:
        if not option.startswith("--"):
            raise ValueError(f"expected --key.sub value, got {option!r}")
        path, equals, value = option.removeprefix("--").partition("=")
        if not equals:
            value = next(given, None)
            if value is None:
                raise ValueError(f"--{path} has no value")
        at = merged
        *parents, last = path.replace("-", "_").split(".")  # --data.batch-size is as good
        for parent in parents:
            at = at.setdefault(parent, {})
            if not isinstance(at, dict):
                raise ValueError(f"unknown recipe key {path!r}: {parent} is a value, not a section")
        at[last] = value
    return merged


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
