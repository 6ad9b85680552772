"""The report of a finished run: its metrics and plots in one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
    _curve(metrics["history"]).savefig(folder / "learning_curve.png", dpi=110)
    shown = {
        "metrics.json": "all numbers, one record per evaluation",
        "learning_curve.png": "loss and metrics over the run",
    }
    body = model.body
    if isinstance(body, RMT) and body.variant.decay:
        draw_decay(model, folder / "decay.png")
        pixels, image = prediction.pixels(model, _example(task, recipe))
        maps = model_attention(model, pixels, _CENTRE)
        draw_attention(image, maps, _CENTRE, folder / "attention.png")
        shown["decay.png"] = "how far each head of each stage sees"
        shown["attention.png"] = "what the centre of one test image attends to, in each stage"
    return shown | prediction.draw_report(model, recipe, folder)


def _example(task: Task[Any, Any, Any], recipe: Recipe) -> Image.Image:
    """Return the first evaluated image that can be read."""
    samples = task.training().open_data(recipe).splits.evaluated
    ((_, image),) = spread_readable(samples.image, len(samples), 1)
    return image


def _curve(history: list[dict[str, Any]]) -> Figure:
    names = [key for key in history[-1] if key not in ("epoch", "step")]
    losses = [name for name in names if name.startswith("loss")]
    rest = [name for name in names if name not in losses and not name.endswith("/images")]
    rest = [name for name in rest if name.count("/") == 1]  # not one curve per class
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, group in zip(figure.subplots(1, 2), (losses, rest), strict=True):
        for name in group:
            points = [(record["step"], record[name]) for record in history if name in record]
            axis.plot(*zip(*points, strict=True), marker=".", label=name)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
        if group:
            axis.legend(fontsize="small").set_in_layout(False)
    return figure
