"""Train a network with a recipe's loop, ours or one with its interface, for the comparisons.

Imported by detection.py and segmentation.py; not a program.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch
from torch import nn

from rmt.data.loaders import DataModule
from rmt.recipes.schema import Recipe
from rmt.task import get_task
from rmt.training.lightning import LoopData, new_trainer, quiet
from rmt.training.module import TrainingModule
from rmt.training.optim import BatchSize


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        params: number of parameters.
        steps: optimizer steps.
        seconds: of the training.
        cpu_seconds: of this process in the training.
        test: metrics of the EMA weights of the last step on the test split.
        history: one record per evaluation on the validation split.
        final: the EMA weights, in eval mode.
    """

    params: int
    steps: int
    seconds: float
    cpu_seconds: float
    test: dict[str, float]
    history: list[dict[str, float]]
    final: Any


def train(
    recipe: Recipe, data: DataModule[Any, Any], other: nn.Module | None, accelerator: str
) -> Run:
    """Train the recipe's network, or another one, and test the EMA weights of the last step.

    Args:
        recipe: of the run.
        data: opened data of the recipe.
        other: a network that is called as the recipe's, to be trained instead.
        accelerator: Lightning's name.
    """
    L.seed_everything(recipe.seed, verbose=False)
    task = get_task(recipe.task)
    model: Any = other or task.new_model(recipe, data.classes)
    module = TrainingModule(task, recipe, model, data, train=True)
    assert module.ema is not None, "the recipe keeps no average of the weights"
    with quiet():
        trainer = new_trainer(
            replace(recipe.trainer, accelerator=accelerator, devices=1),
            max_epochs=recipe.schedule.epochs,
            check_val_every_n_epoch=recipe.trainer.evaluate_every,
            gradient_clip_val=recipe.optimizer.clip_grad,
            accumulate_grad_batches=BatchSize.of(recipe, devices=1).accumulation,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            logger=False,
        )
        started, cpu_started = time.monotonic(), time.process_time()
        trainer.fit(module, LoopData(data))
        seconds, cpu_seconds = time.monotonic() - started, time.process_time() - cpu_started
        steps = trainer.global_step
        trainer.test(module, LoopData(data), verbose=False)
    return Run(
        params=sum(p.numel() for p in model.parameters()),
        steps=steps,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        test=module.results["ema"],
        history=module.history,
        final=module.ema.module.to(torch.device("cpu")).eval(),
    )
