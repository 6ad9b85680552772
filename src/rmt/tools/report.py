"""The report of a finished run: its metrics and plots in one folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from rmt.data.bad_samples import spread_readable
from rmt.files import write_json
from rmt.modeling.rmt import RMT
from rmt.recipes.schema import Recipe
from rmt.task import Task, get_task
from rmt.tools.explain import draw_attention, draw_decay, model_attention
from rmt.training.fit import load_recipe
from rmt.training.run_folder import RECIPE
from rmt.weights.load import load

_CENTRE = (0.5, 0.5)


def write(run: str | Path) -> dict[str, str]:
    """Write ``RUN/report``: metrics, learning curve, decay maps and the task's own plots.

    Args:
        run: folder of a finished :func:`rmt.training.fit.fit`.

    Returns:
        File name -> what it shows.

    Raises:
        ValueError: if ``run`` holds no finished run.
    """
    run = Path(run)
    if not (run / "metrics.json").is_file():
        raise ValueError(f"{run} holds no finished run: there is no metrics.json")
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    model = load(run)
    task = get_task(model.task)
    prediction = task.prediction()
    recipe = load_recipe(run / RECIPE)  # with the paths, which the weights do not carry
    folder = run / "report"
    folder.mkdir(exist_ok=True)
    write_json(folder / "metrics.json", metrics)
    curve = _curve(metrics["history"], logged_losses(run), task.charted)
    curve.savefig(folder / "learning_curve.png", dpi=110)
    shown = {
        "metrics.json": "all numbers, one record per evaluation",
        "learning_curve.png": "training loss, and metrics on the validation split, over the run",
    }
    body = model.body
    if isinstance(body, RMT) and body.variant.decay:
        draw_decay(model, folder / "decay.png")
        pixels, image = prediction.pixels(model, _example(task, recipe))
        maps = model_attention(model, pixels, _CENTRE)
        draw_attention(image, maps, _CENTRE, folder / "attention.png")
        shown["decay.png"] = "how far each head of each stage sees"
        shown["attention.png"] = "what the centre of one image attends to, in each stage"
    return shown | prediction.draw_report(model, recipe, folder)


def _example(task: Task[Any, Any, Any], recipe: Recipe) -> Image.Image:
    """Return the first evaluated image that can be read."""
    samples = task.training().open_data(recipe).splits.evaluated
    ((_, image),) = spread_readable(samples.image, len(samples), 1)
    return image


def logged_losses(run: Path) -> dict[int, float]:
    """Return the training loss of every logged step of a run; a resumed run has several logs."""
    found: dict[int, float] = {}
    logs = (run / "logs").glob("version_*/metrics.csv")
    for path in sorted(logs, key=lambda path: int(path.parent.name.removeprefix("version_"))):
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            found |= {int(row["step"]): float(row["loss"]) for row in rows if row.get("loss")}
    return dict(sorted(found.items()))


def _curve(
    history: list[dict[str, Any]], losses: dict[int, float], charted: Sequence[str]
) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses = losses or {each["step"]: each["loss"] for each in history if "loss" in each}
    if losses:
        steps, values = (np.array(each) for each in (list(losses), list(losses.values())))
        window = max(1, len(values) // 25)
        left.plot(steps, values, color="tab:blue", alpha=0.3 if window > 1 else 1, label="logged")
        if window > 1:
            smooth = np.convolve(values, np.ones(window) / window, mode="valid")
            left.plot(steps[window - 1 :], smooth, color="tab:blue", label=f"mean of {window}")
            left.legend(fontsize="small")
        low, high = np.quantile(values, (0, 0.99))
        left.set_ylim(low - 0.05 * (high - low + 1e-9), high + 0.05 * (high - low + 1e-9))
    left.set(xlabel="step", title="training loss")
    for number, metric in enumerate(charted):
        for weights, line in (("raw", "-"), ("ema", "--")):
            name = f"{weights}/{metric}"
            points = [(record["step"], record[name]) for record in history if name in record]
            if points:
                style = {"color": f"C{number}", "linestyle": line, "marker": "."}
                right.plot(*zip(*points, strict=True), label=f"{metric} ({weights})", **style)
    right.set(xlabel="step", title="validation split")
    right.legend(fontsize="small").set_in_layout(False)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    return figure
