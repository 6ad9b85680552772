"""``rmt train``: train, write the report, print the metrics and where everything is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rmt.tools import report
from rmt.training.callbacks import Interrupted
from rmt.training.find_lr import draw, find_lr
from rmt.training.fit import fit, load_recipe

#: What the final evaluation was on.
SPLITS = {"test": "test split", "val": "validation split, because there is no test split"}


def train(
    name: str,
    *,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    resume: bool | Literal["auto"] = False,
) -> int:
    """Train a recipe, write its report, print the metrics and where everything is.

    Args:
        name: a shipped recipe or a YAML file.
        overrides: ``--key.sub value`` options.
        out: folder of the run; None takes ``runs/`` and the recipe's name.
        resume: continue the interrupted run in ``out``; ``auto`` starts it if there is none yet.

    Returns:
        Exit status: 0, or 130 / 143 if a signal stopped the run with its state saved.

    Raises:
        ValueError: for a mistake in the recipe, its data or ``out``.
    """
    out = out or folder_of(name)
    if resume and (out / "recipe.yaml").is_file():
        name = str(out / "recipe.yaml")  # as it was resolved when the run began
    recipe = load_recipe(name, overrides)
    print(f"{recipe.title or name} -> {out}")
    try:
        metrics = fit(recipe, out, resume=resume)
    except Interrupted as stop:
        print(f"\nrmt: {stop}", file=sys.stderr)
        return stop.code
    if metrics:  # empty in all processes but the first
        shown = report.write(out)
        print(f"best on validation: {metrics['best']} weights; on the {SPLITS[metrics['split']]}:")
        for key, value in metrics["test"].items():
            print(f"{key:>24}  {value if isinstance(value, int) else f'{value:.2f}'}")
        print(f"\nmodel   {out}  (config.json, model.safetensors: rmt predict --checkpoint {out})")
        print("\n".join(f"report  {out / 'report' / file}  {what}" for file, what in shown.items()))
    return 0


def folder_of(name: str) -> Path:
    """Return the folder of a recipe's runs; of a YAML file the name counts, without its folder."""
    return Path("runs") / (Path(name).stem if Path(name).suffix else name)


def find(
    name: str, *, overrides: Sequence[str] = (), out: Path | None = None, steps: int = 100
) -> None:
    """Find a learning rate for a recipe; draw the curve, print the suggestion.

    Args:
        name: a shipped recipe or a YAML file.
        overrides: ``--key.sub value`` options.
        out: folder for ``find_lr.png``; None takes that of the run.
        steps: number of learning rates to try.

    Raises:
        ValueError: for a mistake in the recipe or its data.
    """
    found = find_lr(load_recipe(name, overrides), steps=steps)
    picture = (out or folder_of(name)) / "find_lr.png"
    draw(found, picture)
    if found.lr is None:
        print("no learning rate is suggested: the loss does not fall; try more steps")
    else:
        print(f"suggested: --optimizer.lr {found.lr:.2g}, where the loss falls fastest")
    print(f"curve      {picture}")
