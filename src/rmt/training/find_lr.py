"""The learning-rate finder: the loss while the learning rate grows from step to step."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.tuner import Tuner
from matplotlib.figure import Figure

from rmt.data.loaders import loading_faults_named
from rmt.recipes.schema import Recipe
from rmt.task import get_task
from rmt.training.batch_size import resolved
from rmt.training.chosen_model import with_model
from rmt.training.lightning import LoopData, new_trainer, quiet
from rmt.training.optim import BatchSize, peak_lr
from rmt.training.trial import Trial

#: The smallest and largest peak learning rate that are tried.
LOWEST, HIGHEST = 1e-7, 1.0


@dataclass(frozen=True)
class Found:
    """What the finder found.

    Attributes:
        rates: peak learning rates that were tried, growing.
        losses: the training loss at each of them, smoothed.
        suggested: where the loss falls fastest; None if it does not fall.
        lr: the same as ``optimizer.lr``, which may be for another batch size.
    """

    rates: list[float]
    losses: list[float]
    suggested: float | None
    lr: float | None


def find_lr(recipe: Recipe, *, steps: int = 100) -> Found:
    """Train for some steps while the learning rate grows, by Lightning's finder, on one device.

    Nothing is kept.

    Args:
        recipe: of the run; it starts from ``model.checkpoint`` if that is given.
        steps: number of learning rates to try.

    Raises:
        ValueError: for a mistake in the recipe or its data, or fewer than 10 steps.
    """
    if steps < 10:
        raise ValueError(f"--find-lr is {steps}; it must be at least 10, and 100 is usual")
    recipe, chosen = with_model(recipe)
    if chosen:
        print(f"model: {chosen}")
    task = get_task(recipe.task)
    task.training().check(recipe)
    data = task.training().open_data(recipe)
    recipe = data.recipe = resolved(task, data.recipe, data)
    L.seed_everything(recipe.seed, verbose=False)
    endless = replace(recipe.schedule, steps=0, epochs=10**6, name="constant")
    here = replace(recipe.trainer, devices=1, num_nodes=1, strategy="auto")
    recipe = replace(recipe, schedule=endless, trainer=here)
    model = task.new_model(recipe, data.classes)
    module = Trial(task, recipe, model, data, train=True)
    if recipe.model.checkpoint:
        module.start_from(recipe.model.checkpoint)
    batch = BatchSize.of(recipe, 1)
    with tempfile.TemporaryDirectory() as folder, quiet(), loading_faults_named():
        trainer = new_trainer(
            here,
            default_root_dir=folder,  # the finder saves and restores the weights
            max_epochs=-1,
            accumulate_grad_batches=batch.accumulation,
            gradient_clip_val=recipe.optimizer.clip_grad or None,
            limit_val_batches=0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        finder: Any = Tuner(trainer).lr_find(
            module,
            datamodule=LoopData(data),
            min_lr=LOWEST,
            max_lr=HIGHEST,
            num_training=steps,
            update_attr=False,
        )
    suggested = finder.suggestion()
    scale = peak_lr(recipe, batch.total) / recipe.optimizer.lr
    return Found(
        rates=list(map(float, finder.results["lr"])),
        losses=list(map(float, finder.results["loss"])),
        suggested=suggested,
        lr=suggested and suggested / scale,
    )


def draw(found: Found, path: Path) -> None:
    """Draw the loss over the learning rate, with the suggestion, to a PNG."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    losses = np.array(found.losses)
    axis.plot(found.rates, losses)
    if found.suggested is not None:
        near = int(np.argmin(np.abs(np.array(found.rates) - found.suggested)))
        axis.plot(found.suggested, losses[near], "o", color="red")
        axis.set_title(f"the loss falls fastest at {found.suggested:.2g}")
    finite = losses[np.isfinite(losses)]
    if len(finite):
        low, high = finite.min(), min(finite.max(), finite[: max(1, len(finite) // 4)].max() * 2)
        axis.set_ylim(low - 0.05 * (high - low + 1e-9), high)
    axis.set(xscale="log", xlabel="peak learning rate", ylabel="training loss, smoothed")
    axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
