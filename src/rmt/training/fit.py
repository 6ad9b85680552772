"""A recipe to a trained model, and a model to its metrics, through Lightning's Trainer."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from rmt import recipes
from rmt.files import digest_of_file, write_atomically
from rmt.modeling.pretrained import Pretrained, find_weights
from rmt.recipes.schema import Ema, Recipe, Run
from rmt.training import fsdp
from rmt.training.callbacks import KeepLast, Progress, Throughput, WholeFiles, quiet
from rmt.training.optim import accumulation
from rmt.version import __version__
from rmt.weights.load import Weights, load, load_body, read_pickle, task_module

LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe or a YAML file and apply ``--key.sub value`` words to it."""
    content = recipes.read(name)
    return recipes.resolve(task_module(content["task"]).RECIPE, content, overrides)


def fit(recipe: Recipe, out: str | Path, *, resume: bool = False) -> dict[str, Any]:
    """Train what a recipe describes, keep the best weights and judge them.

    ``out`` receives ``recipe.yaml`` (every field), ``checkpoints/{last,best}.ckpt``, the logs (CSV
    and TensorBoard), ``config.json`` and ``model.safetensors`` of the best weights, and
    ``metrics.json``.

    Args:
        recipe: from :func:`load_recipe`.
        out: folder of the run.
        resume: continue the interrupted run in ``out``, exactly where it was.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        ValueError: if ``out`` holds a run and ``resume`` is off, or holds none and it is on.
        Interrupted: on Ctrl-C or SIGTERM, with the state saved.
        FloatingPointError: if the loss becomes infinite or NaN.
    """
    out = Path(out)
    last = out / LAST
    if last.exists() and not resume:
        raise ValueError(f"{out} holds a run already; continue it with --resume or name another")
    if resume and not last.exists():
        raise ValueError(f"{out} holds no run to resume: no {LAST}")
    if resume:
        read_pickle(last)  # says so if it is damaged
    out.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(recipes.as_dict(recipe), sort_keys=False)
    write_atomically(out / "recipe.yaml", lambda path: path.write_text(text))
    L.seed_everything(recipe.seed, verbose=False)
    if recipe.trainer.threads:
        torch.set_num_threads(recipe.trainer.threads)
    engine, data = task_module(recipe.task).make(recipe)
    if recipe.model.checkpoint and not resume:
        fresh = load_body(engine.model, recipe.model.checkpoint)
        print(f"started from {recipe.model.checkpoint}; fresh: {', '.join(fresh) or 'nothing'}")
        if engine.ema:
            engine.ema.set(engine.model)
    started = time.monotonic()
    with quiet():
        trainer = _trainer(recipe, out, engine.key)
        trainer.fit(engine, data, ckpt_path=last if resume else None, weights_only=True)
    seconds = time.monotonic() - started
    trainer.strategy.barrier()
    model = load(out / BEST)
    test = evaluate(model, recipe=recipe)  # by all processes
    if not trainer.is_global_zero:
        return {}
    model.save_pretrained(out)
    metrics = {
        "task": recipe.task,
        "best": engine.best_weights,
        f"val_{engine.key}": engine.best_score,
        "seconds": round(seconds, 1),
        "history": engine.history,
        "test": test,
    }
    write_json(out / "metrics.json", metrics)
    return metrics


def evaluate(
    source: str | Path | Pretrained,
    *,
    overrides: Sequence[str] = (),
    weights: Weights | None = None,
    recipe: Recipe | None = None,
    knn: int = 0,
) -> dict[str, Any]:
    """Judge weights on the test part of a data set (the validation part if there is no test).

    Args:
        source: a model, or anything :func:`rmt.weights.load.load` reads.
        overrides: ``--data.root DIR`` and other recipe keys.
        weights: ``raw`` or ``ema`` where a file holds both.
        recipe: what to judge with; None takes the one that travels with the weights, or the
            task's defaults for a file of the release.
        knn: judge a classifier's features by so many nearest training images instead.

    Returns:
        Metric name -> value, exact over all images and processes.

    Raises:
        ValueError: if data and weights do not belong together, or ``knn`` is asked of a detector
            or segmenter.
    """
    model = source if isinstance(source, Pretrained) else load(source, weights=weights)
    return _judge(model, overrides, recipe, knn)[0]


def record_evaluation(
    source: str | Path,
    *,
    overrides: Sequence[str] = (),
    weights: Weights | None = None,
    knn: int = 0,
) -> dict[str, Any]:
    """Judge a checkpoint as :func:`evaluate` does, and say what was judged on what by what.

    Returns:
        ``checkpoint`` and ``data`` with their SHA-256, ``metrics``, ``date`` (UTC), ``machine``,
        what was asked (``knn``, ``overrides``), the ``recipe`` it led to, and ``versions``; nothing
        in all processes but the first. The digest of the checkpoint is that of its file; that of
        the data covers each image's name, size in bytes and labels.
    """
    model = load(source, weights=weights)
    metrics, recipe, judged = _judge(model, overrides, None, knn)
    if getattr(rank_zero_only, "rank", 0):  # set by Lightning's launchers, and not declared
        return {}
    file = digest_of_file(find_weights(source))
    return {
        "checkpoint": {
            "path": str(source),
            "weights": model.info.get("weights", "raw"),
            "sha256": file,
        },
        "data": {
            "root": recipe.data.root,
            "images": len(judged),
            "unreadable": len(judged) - int(metrics.get("images", len(judged))),
            "sha256": judged.digest(),
        },
        "metrics": metrics,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(recipe),
        "knn": knn,
        "overrides": list(overrides),
        "recipe": recipes.as_dict(recipe),
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm", "lightning")}
        | {"rmt": __version__, "python": platform.python_version()},
    }


def _machine(recipe: Recipe) -> str:
    if recipe.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return f"{platform.machine()}, CPU"
    return f"{platform.machine()}, {torch.cuda.get_device_name()}"


def _judge(
    model: Pretrained, overrides: Sequence[str], recipe: Recipe | None, knn: int
) -> tuple[dict[str, Any], Recipe, Any]:
    task = task_module(model.task)
    if recipe is None:
        content = model.info.get("recipe") or task.default_recipe(model)
        content = {key: value for key, value in content.items() if key != "trainer"}
        recipe = recipes.resolve(task.RECIPE, content, overrides)
    if knn:
        if model.task != "classification":
            raise ValueError(
                f"nearest neighbours judge a classifier; this is for {model.task}"
            )
        judge = task_module(model.task, "knn").evaluate_knn
        found, judged = judge(model, recipe, knn)
        return found, recipe, judged
    recipe = replace(recipe, ema=Ema())  # a matter of training
    engine, data = task.make(recipe, model=model)
    was_training = model.training
    with quiet():
        trainer = _start(
            recipe.trainer, callbacks=[Progress()], logger=False, enable_checkpointing=False
        )
        trainer.test(engine, data, verbose=False)
    model.train(was_training)
    return engine.results["raw"], recipe, data.judged()


def write_json(path: Path, content: Any) -> None:
    """Write plain values as readable JSON; a half-written file never stays."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2)))


def _start(run: Run, **options: Any) -> L.Trainer:
    """Return a Trainer on the recipe's devices.

    Raises:
        ValueError: if there are none such, or Lightning does not know a word.
    """
    try:
        return L.Trainer(
            accelerator=run.accelerator,
            devices=run.devices,
            num_nodes=run.num_nodes,
            precision=cast(Any, run.precision),  # Lightning checks the word
            use_distributed_sampler=False,  # ours cut the data themselves, without padding
            enable_model_summary=False,
            **options,
        )
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise ValueError(
            f"trainer.accelerator {run.accelerator!r} with trainer.devices {run.devices!r} cannot "
            f"be had: {' '.join(str(error).split())}"
        ) from error


def _trainer(recipe: Recipe, out: Path, key: str) -> L.Trainer:
    run, schedule = recipe.trainer, recipe.schedule
    if bool(schedule.epochs) == bool(schedule.steps):
        raise ValueError(
            f"schedule.epochs is {schedule.epochs} and schedule.steps {schedule.steps}: "
            "exactly one of them must say how long the run is"
        )
    best = ModelCheckpoint(
        dirpath=out / Path(BEST).parent,
        filename=Path(BEST).stem,
        monitor=f"val/{key}",
        mode="max",
        enable_version_counter=False,
    )
    callbacks: list[Callback] = [Throughput(), Progress()]
    if run.early_stopping_patience:
        callbacks.append(
            EarlyStopping(f"val/{key}", mode="max", patience=run.early_stopping_patience)
        )
    # Last, for what it writes must hold what the others decided.
    callbacks += [best, KeepLast(out / LAST, run.save_every)]
    evaluation: dict[str, Any]
    if schedule.steps:
        every = run.evaluate_every or max(1, schedule.steps // 10)
        evaluation = {"val_check_interval": every, "check_val_every_n_epoch": None}
    else:
        evaluation = {"check_val_every_n_epoch": run.evaluate_every or 1}
    # torch synchronises batch norm between accelerators only.
    on_accelerator = run.accelerator != "cpu" and torch.accelerator.is_available()
    trainer = _start(
        run,
        strategy=fsdp.strategy(run.strategy),
        max_epochs=schedule.epochs or -1,
        max_steps=schedule.steps or -1,
        gradient_clip_val=recipe.optimizer.clip_grad or None,
        sync_batchnorm=run.sync_batchnorm and on_accelerator,
        num_sanity_val_steps=0,
        log_every_n_steps=run.log_every,
        logger=[
            CSVLogger(str(out), name="logs"),
            TensorBoardLogger(str(out), name="logs", version="tensorboard"),
        ],
        callbacks=callbacks,
        plugins=[WholeFiles()],
        **evaluation,
    )
    # Known now: on how many devices.
    trainer.accumulate_grad_batches = accumulation(recipe, trainer.world_size)
    if schedule.steps:
        trainer.val_check_interval *= trainer.accumulate_grad_batches
    return trainer
