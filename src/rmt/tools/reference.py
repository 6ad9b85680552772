"""The reference of the recipe keys; ``python -m rmt.tools.reference`` prints docs/keys.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rmt.recipes import as_dict, reference
from rmt.task import TASKS
from rmt.training.fit import load_recipe


def help_keys(name: str | Path, overrides: Sequence[str] = ()) -> str:
    """Return every key of a recipe with its value, what it may be and what it means.

    Raises:
        ValueError: as :func:`rmt.training.fit.load_recipe`.
    """
    recipe = load_recipe(name, overrides)
    return reference.help_keys(recipe, as_dict(recipe))


def page() -> str:
    """Return the reference of the recipe keys of all tasks as Markdown."""
    return reference.page({name: task.recipe for name, task in TASKS.items()})


if __name__ == "__main__":
    print(page(), end="")
