"""Training of a recipe's model, by Lightning's Trainer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from rmt import recipes
from rmt.data.classes import few
from rmt.data.loaders import loading_faults_named
from rmt.files import for_people, write_json
from rmt.recipes.schema import Recipe
from rmt.task import get_task
from rmt.training import fsdp, loggers
from rmt.training.batch_size import resolved
from rmt.training.callbacks import KeepBest, KeepLast, StopEarly, Throughput
from rmt.training.chosen_model import as_begun, with_model
from rmt.training.evaluate import evaluate_on
from rmt.training.lightning import LoopData, WholeFiles, new_trainer, quiet
from rmt.training.module import TrainingModule
from rmt.training.optim import BatchSize
from rmt.training.progress import Pace, progress
from rmt.training.run_folder import RunFolder, check_unchanged, read_recipe
from rmt.weights.load import load


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe or a YAML file and apply ``--key.sub value`` options to it.

    If they change the model, the title says so.

    Raises:
        ValueError: for an unknown recipe, key or task (the nearest is named), or a wrong value.
    """
    content = read_recipe(name)
    recipe = recipes.resolve(get_task(content["task"]).recipe, content, overrides)
    return recipes.of_another_model(name, content, recipe) if overrides else recipe


def fit(
    recipe: Recipe, out: str | Path, *, resume: bool | Literal["auto"] = False
) -> dict[str, Any]:
    """Train the model that a recipe describes, keep the best weights and evaluate them.

    ``out`` receives ``recipe.yaml`` (every field), ``checkpoints/{last,previous,best}.ckpt``, the
    logs (CSV, and what ``trainer.logger`` names), ``config.json`` and ``model.safetensors`` of the
    best weights, and ``metrics.json``. Nothing is written there before recipe, data and state are
    checked.

    Args:
        recipe: from :func:`load_recipe`.
        out: folder of the run.
        resume: continue the interrupted run in ``out``, exactly where it stopped; ``auto`` starts
            it if there is none yet, for jobs that are queued again and again.

    Returns:
        The content of ``metrics.json``, with numbers of six digits: ``test`` has the metrics of the
        best weights on ``split``; an empty dict in all processes but the first.

    Raises:
        ValueError: if ``out`` holds a run and ``resume`` is off, or holds none and it is on; if
            another process trains there; if the recipe differs from the run's in a key that must
            not change.
        Interrupted: on Ctrl-C or SIGTERM, with the state saved.
        FloatingPointError: if the loss becomes infinite or NaN.
    """
    recipe.schedule.check_length()
    folder = RunFolder(out)
    with folder.locked():
        return _fit(recipe, folder, resume)


def _fit(recipe: Recipe, folder: RunFolder, resume: bool | Literal["auto"]) -> dict[str, Any]:
    state, kept = _state(folder, resume)
    recipe = _chosen(recipe, kept and kept["description"]["info"]["recipe"])
    task = get_task(recipe.task)
    task.training().check(recipe)
    loggers.check(recipe.trainer)
    data = task.training().open_data(recipe)
    recipe = data.recipe = resolved(task, data.recipe, data)
    record = folder.same_data(data, resumed=kept is not None)
    rank_zero_only(print)(data.describe())
    _check_num_classes(recipe, data.classes)
    L.seed_everything(recipe.seed, verbose=False)
    if recipe.trainer.threads:
        torch.set_num_threads(recipe.trainer.threads)
    module = TrainingModule(task, recipe, task.new_model(recipe, data.classes), data, train=True)
    if recipe.model.checkpoint and state is None:
        new = module.start_from(recipe.model.checkpoint)
        print(
            f"started from {recipe.model.checkpoint}; randomly initialised: "
            f"{', '.join(new) or 'nothing'}"
        )
    if kept is not None and kept["best"]["at"] >= 0 and not folder.holds_best(kept):
        print(f"{folder.best} is missing or damaged, so the best weights so far are lost: only "
              "evaluations from here on are compared")  # fmt: skip
        module.forgets_best = True
    started = time.monotonic()
    with quiet(), loading_faults_named():
        trainer = _trainer(recipe, folder)
        folder.commit(recipe, record)
        loggers.begin(trainer.loggers, recipe, folder.path)
        trainer.fit(module, LoopData(data), ckpt_path=state, weights_only=True)
        if module.best.at < 0:  # they were lost, and no evaluation followed
            trainer.save_checkpoint(folder.best, weights_only=False)
    seconds = time.monotonic() - started
    trainer.strategy.barrier()
    model = load(folder.best)
    test = evaluate_on(data, model)  # by all processes
    if not trainer.is_global_zero:
        return {}
    model.save_pretrained(folder.path)
    metrics = for_people(
        {
            "task": recipe.task,
            "split": data.splits.evaluated_name,
            "best": module.best.weights,
            f"val_{module.monitor}": module.best.score if module.best.at >= 0 else None,
            "seconds": round(seconds, 1),
            "history": module.history,
            "test": test,
        }
    )
    write_json(folder.path / "metrics.json", metrics)
    return metrics


def _state(
    folder: RunFolder, resume: bool | Literal["auto"]
) -> tuple[Path | None, dict[str, Any] | None]:
    """Return the state to continue from and what it records; two Nones for a new run."""
    has_state = folder.last.exists() or folder.previous.exists()
    if has_state and not resume:
        raise ValueError(
            f"{folder.path} already holds a run; continue it with --resume, or name another folder "
            "with --out"
        )
    if not resume or (resume == "auto" and not has_state):
        return None, None
    return folder.state_to_resume()


def _chosen(recipe: Recipe, before: dict[str, Any] | None) -> Recipe:
    """Return a recipe with the network that ``auto`` stands for, and say which.

    Args:
        recipe: of the run.
        before: the recipe in the state of a resumed run, which stays what it was.
    """
    if before is not None:
        recipe = as_begun(recipe, before)
    recipe, chosen = with_model(recipe)
    if chosen:
        rank_zero_only(print)(f"model: {chosen}")
    if before is not None:
        check_unchanged(recipe, before)
    return recipe


def _check_num_classes(recipe: Recipe, classes: Sequence[str]) -> None:
    wanted = recipe.model.num_classes
    if wanted not in (None, len(classes)):
        raise ValueError(
            f"model.num_classes is {wanted} and the data has {len(classes)} classes "
            f"({few(classes, 5)}); set it to null to use the data's"
        )


def _trainer(recipe: Recipe, folder: RunFolder) -> L.Trainer:
    config, schedule = recipe.trainer, recipe.schedule
    pace = Pace()
    callbacks: list[Callback] = [Throughput(), pace, progress(pace)]
    if config.early_stopping_patience:
        callbacks.append(StopEarly(config.early_stopping_patience, config.early_stopping_max_lr))
    # Last, because the files must include what the other callbacks decided.
    callbacks += [
        KeepBest(folder.best),
        KeepLast(folder.last, folder.previous, config.save_every),
    ]
    evaluation: dict[str, Any]
    if schedule.steps:
        every = config.evaluate_every or max(1, schedule.steps // 10)
        evaluation = {"val_check_interval": every, "check_val_every_n_epoch": None}
    else:
        evaluation = {"check_val_every_n_epoch": config.evaluate_every or 1}
    # torch synchronises batch norm between accelerators only.
    on_accelerator = config.accelerator != "cpu" and torch.accelerator.is_available()
    trainer = new_trainer(
        config,
        strategy=fsdp.strategy(config.strategy),
        max_epochs=schedule.epochs or -1,
        max_steps=schedule.steps or -1,
        gradient_clip_val=recipe.optimizer.clip_grad or None,
        sync_batchnorm=config.sync_batchnorm and on_accelerator,
        num_sanity_val_steps=0,
        log_every_n_steps=config.log_every,
        logger=loggers.make(config, folder.path),
        callbacks=callbacks,
        plugins=[WholeFiles()],
        **evaluation,
    )
    # Only now is the number of devices known.
    trainer.accumulate_grad_batches = BatchSize.of(recipe, trainer.world_size).accumulation
    if schedule.steps:
        trainer.val_check_interval *= trainer.accumulate_grad_batches
    return trainer
