"""A recipe to a trained model, and a model to its metrics, through Lightning's Trainer."""

from __future__ import annotations

import json
import logging
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from rmt import recipes
from rmt.checkpoints import Weights, load, load_body, task_module
from rmt.engine import Engine
from rmt.hub import write_atomically
from rmt.recipes.schema import Recipe, WeightAverage

_ADVICE = (
    ".*does not have many workers.*",
    ".*logging interval.*",
    ".*exists and is not empty.*",
    ".*treespec, LeafSpec.*",  # asked by Lightning of torch's pytree
)
LAST, BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"


class Interrupted(Exception):  # noqa: N818 (a request, not an error)
    """A signal asked the run to stop; its state is saved.

    Attributes:
        code: exit status of the command, 128 + the signal's number.
    """

    def __init__(self, number: int, where: Path) -> None:
        self.code = 128 + number
        super().__init__(
            f"stopped by {signal.Signals(number).name}; {where} holds everything done so far: "
            "repeat the command with --resume to continue"
        )


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
    if not trainer.is_global_zero:
        return {}
    model = load(out / BEST)
    model.save_pretrained(out)
    metrics = {
        "task": recipe.task,
        "best": engine.best_weights,
        f"val_{engine.key}": engine.best_score,
        "seconds": round(seconds, 1),
        "history": engine.history,
    }
    metrics["test"] = evaluate(model, recipe=recipe)
    write_json(out / "metrics.json", metrics)
    return metrics


def evaluate(
    source: str | Path | nn.Module,
    *,
    overrides: Sequence[str] = (),
    weights: Weights | None = None,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Judge weights on the test part of a data set (the validation part if there is no test).

    Args:
        source: a model, or anything :func:`rmt.checkpoints.load` reads.
        overrides: ``--data.root DIR`` and other recipe keys.
        weights: ``raw`` or ``ema`` where a file holds both.
        recipe: what to judge with; None takes the one that travels with the weights, or the
            task's defaults for a file of the release.

    Returns:
        Metric name -> value, exact over all images and processes.
    """
    model = source if isinstance(source, nn.Module) else load(source, weights=weights)
    task = task_module(model.task)
    if recipe is None:
        content = model.info.get("recipe") or task.default_recipe(model)
        content = {key: value for key, value in content.items() if key != "trainer"}
        recipe = recipes.resolve(task.RECIPE, content, overrides)
    recipe = replace(recipe, average=WeightAverage())  # a matter of training
    engine, data = task.make(recipe, model=model)
    was_training = model.training
    with quiet():
        trainer = L.Trainer(
            accelerator=recipe.trainer.accelerator,
            devices=recipe.trainer.devices,
            num_nodes=recipe.trainer.num_nodes,
            precision=recipe.trainer.precision,
            callbacks=[Progress()],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        found = trainer.test(engine, data, verbose=False)
    model.train(was_training)
    return {key.removeprefix("raw/"): value for key, value in found[0].items() if "raw/" in key}


def write_json(path: Path, content: Any) -> None:
    """Write plain values as readable JSON; a half-written file never stays."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2)))


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
    callbacks: list[Callback] = [
        best,
        KeepLast(out / LAST, run.save_every),
        Throughput(),
        Progress(),
    ]
    if run.patience:
        callbacks.append(EarlyStopping(f"val/{key}", mode="max", patience=run.patience))
    if schedule.steps:
        every = run.evaluate_every or max(1, schedule.steps // 10)
        evaluation = {"val_check_interval": every * run.accumulate, "check_val_every_n_epoch": None}
    else:
        evaluation = {"check_val_every_n_epoch": run.evaluate_every or 1}
    return L.Trainer(
        accelerator=run.accelerator,
        devices=run.devices,
        num_nodes=run.num_nodes,
        strategy=run.strategy,
        precision=run.precision,
        max_epochs=schedule.epochs or -1,
        max_steps=schedule.steps or -1,
        accumulate_grad_batches=run.accumulate,
        gradient_clip_val=recipe.optimizer.clip_grad or None,
        sync_batchnorm=run.sync_batchnorm,
        use_distributed_sampler=False,  # our samplers cut the data themselves, without padding
        num_sanity_val_steps=0,
        log_every_n_steps=run.log_every,
        enable_model_summary=False,
        logger=[
            CSVLogger(str(out), name="logs"),
            TensorBoardLogger(str(out), name="logs", version="tensorboard"),
        ],
        callbacks=callbacks,
        **evaluation,
    )


class KeepLast(Callback):
    """Keep the state of the run in one file, replaced in one step, and stop cleanly on a signal.

    The file is written at each epoch's end and evaluation, every ``every`` steps if that is not 0,
    and when Ctrl-C or SIGTERM asks for a stop; then the running step is finished first. A second
    Ctrl-C stops at once.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listen for the two signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any
    ) -> None:
        """Save where the interval says so; stop if asked, on all processes in the same step."""
        asked = self.asked is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            trainer.save_checkpoint(self.path, weights_only=False)
            raise Interrupted(self.asked or signal.SIGTERM, self.path)
        step = trainer.global_step
        stepped = trainer.fit_loop.epoch_loop._should_accumulate() is False
        if self.every and stepped and step % self.every == 0:
            trainer.save_checkpoint(self.path, weights_only=False)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save behind an evaluation within an epoch."""
        if trainer.state.fn == "fit":
            trainer.save_checkpoint(self.path, weights_only=False)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save behind an epoch."""
        trainer.save_checkpoint(self.path, weights_only=False)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number


class Throughput(Callback):
    """Log training images a second over all devices."""

    def __init__(self) -> None:
        self._since = 0.0

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        """Start the clock with the first batch."""
        self._since = self._since or time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Engine, *_: Any, **__: Any) -> None:
        """Log images over the time since the last batch's end, loading included."""
        now = time.monotonic()
        images = pl_module.recipe.data.batch * trainer.world_size
        rate = torch.tensor(images / max(now - self._since, 1e-9))
        pl_module.log("images/s", rate, prog_bar=True, on_step=True)
        self._since = now

    def on_train_epoch_end(self, *_: Any) -> None:
        """Do not count the evaluation between epochs."""
        self._since = 0.0


class Progress(RichProgressBar):
    """Lightning's bar with loss, accuracy, images/s and the time left, and no version number."""

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Return what is shown behind the bar."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        return shown


@contextmanager
def quiet() -> Iterator[None]:
    """Drop Lightning's advice on workers, intervals and products: a recipe decides these."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for text in _ADVICE:
                warnings.filterwarnings("ignore", message=text)
            yield
    finally:
        logger.setLevel(level)
