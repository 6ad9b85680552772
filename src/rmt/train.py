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
from typing import Any, cast

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    ModelCheckpoint,
    RichProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from rmt import recipes
from rmt.checkpoints import Weights, load, load_body, task_module
from rmt.engine import Engine, accumulation
from rmt.hub import Pretrained, write_atomically
from rmt.recipes.schema import Recipe, WeightAverage

_ADVICE = (
    ".*does not have many workers.*",
    ".*logging interval.*",
    ".*exists and is not empty.*",
    ".*treespec, LeafSpec.*",  # asked by Lightning of torch's pytree
    ".*in eval mode at the start of training.*",  # the weight average is
    ".*sync_dist=True.*",  # metrics are summed over the processes before they are logged
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
    model = source if isinstance(source, Pretrained) else load(source, weights=weights)
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
            precision=cast(Any, recipe.trainer.precision),
            callbacks=[Progress()],
            use_distributed_sampler=False,  # ours cut the data themselves, without padding
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        trainer.test(engine, data, verbose=False)
    model.train(was_training)
    return engine.judged["raw"]


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
    callbacks: list[Callback] = [Throughput(), Progress()]
    if run.patience:
        callbacks.append(EarlyStopping(f"val/{key}", mode="max", patience=run.patience))
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
    trainer = L.Trainer(
        accelerator=run.accelerator,
        devices=run.devices,
        num_nodes=run.num_nodes,
        strategy=run.strategy,
        precision=cast(Any, run.precision),  # Lightning checks the word
        max_epochs=schedule.epochs or -1,
        max_steps=schedule.steps or -1,
        gradient_clip_val=recipe.optimizer.clip_grad or None,
        sync_batchnorm=run.sync_batchnorm and on_accelerator,
        use_distributed_sampler=False,  # our samplers cut the data themselves, without padding
        num_sanity_val_steps=0,
        log_every_n_steps=run.log_every,
        enable_model_summary=False,
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


class WholeFiles(TorchCheckpointIO):
    """Write a checkpoint beside its place, then move it there in one step.

    Lightning's own writer goes through the system's temporary folder, and a move from another
    disk can be cut in the middle.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None):
        """Write one file; the one that was there stays until the new one is whole."""
        assert storage_options is None
        write_atomically(Path(path), lambda temporary: torch.save(checkpoint, temporary))


class KeepLast(Checkpoint):
    """Keep the state of the run in one file, and stop cleanly on a signal.

    The file is written at each epoch's end, behind each evaluation within an epoch, every
    ``every`` steps if that is not 0, and when Ctrl-C or SIGTERM asks for a stop. It is written
    only where a resumed run can take up the thread exactly: between two optimizer steps with no
    evaluation between them, or at an epoch's end; a write that falls elsewhere waits. A second
    Ctrl-C stops at once.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self.asked: int | None = None
        self._due = False
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin a new epoch if the resumed one was whole; listen for the two signals."""
        loop = trainer.fit_loop
        batches = loop.epoch_loop.batch_progress.current.ready
        if loop.restarting and batches >= trainer.num_training_batches:
            # A run counted in steps: Lightning would go on in the epoch that is over.
            trackers: list[Any] = [loop.epoch_progress.total, loop.epoch_progress.current]
            for progress in trackers:
                progress.completed = progress.processed
            loop.epoch_loop.restarting = False
            loop.reset_restart_stage()
            loop.epoch_loop.reset_restart_stage()
        if any(stop.wait_count >= stop.patience for stop in trainer.early_stopping_callbacks):
            trainer.should_stop = True  # it had stopped before it was cut off
        # In place of Lightning, which would not finish the step.
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Give the signals back."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)

    on_exception = on_train_end

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, at: int
    ) -> None:
        """Save where the interval says so; stop if asked, on all processes in the same step."""
        asked = self._all_asked(trainer)
        stepped = (at + 1) % trainer.accumulate_grad_batches == 0
        if self.every and stepped and trainer.global_step % self.every == 0:
            self._due = True
        # Within an epoch counted in steps, an evaluation may follow this very batch.
        loop = trainer.fit_loop.epoch_loop
        judged = (
            trainer.check_val_every_n_epoch is None
            and (loop.total_batch_idx + 1) % cast(int, trainer.val_check_batch) == 0
        )
        if (asked or self._due) and stepped and not judged and not trainer.is_last_batch:
            self._save(trainer, asked)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember to save behind an evaluation."""
        self._due = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save behind an epoch."""
        self._save(trainer, self._all_asked(trainer))

    def _save(self, trainer: L.Trainer, asked: bool) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)
        self._due = False
        if asked:
            raise Interrupted(self.asked or signal.SIGTERM, self.path)

    def _all_asked(self, trainer: L.Trainer) -> bool:
        asked = self.asked is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        return asked

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

    def on_train_epoch_end(self, *_: Any, **__: Any) -> None:
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
