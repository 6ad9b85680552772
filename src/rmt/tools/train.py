"""``rmt train``: train, write the report, print the metrics and where everything is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rmt.tools import report
from rmt.training.callbacks import Interrupted
from rmt.training.fit import fit, load_recipe


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
    # Of a YAML file the name alone, without its folder.
    out = out or Path("runs") / (Path(name).stem if Path(name).suffix else name)
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
        print(
            f"best on validation: {metrics['best']} weights; evaluated on the test split "
            "(the validation split if there is none):"
        )
        print("\n".join(f"{key:>24}  {value:.2f}" for key, value in metrics["test"].items()))
        print(f"\nmodel   {out}  (config.json, model.safetensors: rmt predict --checkpoint {out})")
        print("\n".join(f"report  {out / 'report' / file}  {what}" for file, what in shown.items()))
    return 0
