"""What a recipe would do: size, cost, schedule, memory and first samples, without training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.strategies import StrategyRegistry

from rmt.data.formats import NoRoot
from rmt.data.loaders import DataModule
from rmt.messages import did_you_mean, duration
from rmt.modeling.flops import count
from rmt.modeling.pretrained import Pretrained
from rmt.modeling.saved import find_weights
from rmt.recipes import as_dict
from rmt.recipes.schema import Recipe
from rmt.task import Task, get_task
from rmt.training import fsdp, loggers
from rmt.training.batch_size import memory_of, resolved, with_batch_size
from rmt.training.chosen_model import with_model
from rmt.training.fit import load_recipe
from rmt.training.optim import BatchSize, freeze, learning_rate, parameter_groups, peak_lr
from rmt.training.trial import measure

#: Class names in a description.
MOST_NAMES = 100


def dry_run(
    name: str | Path, overrides: Sequence[str] = (), *, try_data: bool = False
) -> dict[str, Any]:
    """Describe a run as plain JSON values.

    Args:
        name: a shipped recipe or a YAML file.
        overrides: ``--key.sub value`` options.
        try_data: if ``data.root`` is given, or not needed, open the data, load the first sample of
            each split, and measure the time of a step.

    Returns:
        ``model``, which network ``auto`` chose and why, empty if the recipe names one; ``params``;
        ``macs`` of one image of size ``input``, as :mod:`rmt.modeling.flops` counts
        (``macs_of`` says of which part: the cost of a detector's heads depends on the image, so
        only backbone and neck are counted); ``epochs`` and ``lr_per_epoch`` (epoch -> rate of its
        first step) or ``steps`` and ``lr_per_step``; ``batch``, the global batch size, with
        ``devices`` and ``accumulation``; ``peak_lr``; ``memory_gib`` per device with images of size
        ``train_size`` (see :func:`rmt.modeling.memory.training_memory`); ``data``, if it was
        opened: ``description`` in one sentence, ``classes``, the number of images in ``train``,
        ``val`` and ``test``, whether ``val`` is ``held_out`` of ``train``, and ``per_epoch``,
        images shown per epoch; ``time``, if the data were opened (see
        :class:`rmt.training.trial.Times`); ``assumed``, what was assumed because only the data or
        the machine could tell; ``recipe``, every field.

    Raises:
        ValueError: for a mistake in the recipe or in the data.
    """
    recipe = load_recipe(name, overrides)
    recipe.schedule.check_length()
    task, config = get_task(recipe.task), recipe.trainer
    given = recipe
    recipe, chosen = with_model(recipe)
    devices = (1 if config.devices == "auto" else config.devices) * config.num_nodes
    recipe, opened = _with_data(task, recipe, try_data=try_data)
    batch = BatchSize.of(recipe, devices)
    peak = peak_lr(recipe, batch.total)
    data = _try_data(opened) if opened else None
    classes = data["classes"] if data else _unknown_classes(task, recipe)
    images = data["per_epoch"] if data else task.reference_images
    with torch.device("meta"):
        model = task.new_model(recipe, classes)
    _check(task, recipe, model)
    published = recipe.published
    return {
        "title": recipe.title,
        "model": chosen,
        **_cost(task, recipe, model),
        "batch": batch.total,
        "devices": devices,
        "accumulation": batch.accumulation,
        "peak_lr": peak,
        **_schedule(recipe, peak, max(1, images // batch.total)),
        "data": data,
        "time": measure(task, recipe, opened, devices).as_dict() if opened else None,
        "assumed": _assumptions(task, given, known=data is not None),
        "published": {"source": published.source, "numbers": dict(published.numbers)},
        "recipe": as_dict(given),
    }


def _cost(task: Task[Any, Any, Any], recipe: Recipe, model: Pretrained) -> dict[str, Any]:
    """Return the size of a model, what an image costs, and the memory of training."""
    measured, size = task.countable(model), task.counted_size(recipe)
    train_size = task.train_size(recipe)
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "macs": count(measured, size).macs,
        "macs_of": "all" if measured is model else "backbone and neck",
        "input": list(size),
        "train_size": list(train_size),
        "memory_gib": memory_of(recipe, model, measured, train_size),
    }


def _with_data(
    task: Task[Any, Any, Any], recipe: Recipe, *, try_data: bool
) -> tuple[Recipe, DataModule[Any, Any] | None]:
    """Return the recipe with its batch size as a number, and its data if they can be opened."""
    opened = _open_data(task, recipe) if try_data else None
    if opened:
        opened.recipe = resolved(task, opened.recipe, opened)
        return opened.recipe, opened
    if recipe.data.batch_size == "auto":
        recipe = with_batch_size(recipe, type(recipe.data)().images_per_batch)
    return recipe, None


def show(described: dict[str, Any], *, only_recipe: bool = False) -> str:
    """Return the result of :func:`dry_run` as text; ``only_recipe`` gives its YAML alone."""
    recipe = yaml.safe_dump(described["recipe"], sort_keys=False)
    if only_recipe:
        return recipe
    length = "epochs" if "epochs" in described else "steps"
    rates = described["lr_per_epoch" if length == "epochs" else "lr_per_step"]
    height, width = described["input"]
    devices, accumulation = described["devices"], described["accumulation"]
    batch = BatchSize(described["batch"] // (devices * accumulation), devices, accumulation)
    kept = described["memory_gib"]
    parts = ", ".join(f"{key} {value:.2f}" for key, value in kept.items() if key != "total")
    train_height, train_width = described["train_size"]
    return "\n".join(
        [
            described["title"],
            *([f"model       {described['model']}"] if described["model"] else []),
            *_data_lines(described),
            f"parameters  {described['params']:,}",
            f"MACs        {described['macs'] / 1e9:.3f} G for one image of {height}x{width} "
            f"({described['macs_of']})",
            f"batch       {batch}",
            f"{length:<11} {described[length]}",
            f"peak lr     {described['peak_lr']:.6g}",
            f"memory      {kept['total']:.1f} GiB per device: {parts}",
            f"            (an estimate for images of {train_height}x{train_width}, without the "
            "workspace of kernels and fragmentation)",
            f"time        {_time(described)}",
            f"assumed     {'; '.join(described['assumed']) or 'nothing'}",
            f"published   {_published(described['published'])}",
            "",
            text_curve(list(rates.values()), f"learning rate over {described[length]} {length}"),
            "",
            recipe,
        ]
    )


def text_curve(values: Sequence[float], title: str, *, width: int = 60, height: int = 8) -> str:
    """Return a bar chart of ``values`` as text, below its title."""
    width = min(width, len(values))
    columns = [values[(i * len(values)) // width] for i in range(width)]
    top = max(values) or 1.0
    levels = [math.ceil(value / top * height) for value in columns]
    rows = [
        f"{top * row / height:>10.2e} |" + "".join("█" if at >= row else " " for at in levels)
        for row in range(height, 0, -1)
    ]
    return "\n".join([title, *rows, " " * 11 + "+" + "-" * width])


def _open_data(task: Task[Any, Any, Any], recipe: Recipe) -> DataModule[Any, Any] | None:
    """Return the opened data; None if the recipe does not say where they are."""
    if getattr(recipe.data, "download", False):  # a dry run downloads nothing
        return None
    try:
        return task.training().open_data(recipe)
    except NoRoot:
        return None


def _try_data(data: DataModule[Any, Any]) -> dict[str, Any]:
    """Load the first samples; return the classes and the number of images."""
    per_epoch = data.check_first_samples() * data.recipe.data.images_per_batch
    splits = data.splits
    return {
        "description": splits.describe(MOST_NAMES),
        "classes": list(data.classes),
        "train": 0 if splits.train is None else len(splits.train),
        "per_epoch": per_epoch,
        "val": len(splits.val),
        "test": 0 if splits.test is None else len(splits.test),
        "held_out": splits.held_out,
    }


def _unknown_classes(task: Task[Any, Any, Any], recipe: Recipe) -> list[str]:
    return list(map(str, range(recipe.model.num_classes or task.reference_classes)))


def _check(task: Task[Any, Any, Any], recipe: Recipe, model: Pretrained) -> None:
    """Build what a run builds besides network and data, to find the same mistakes."""
    freeze(model, recipe.model.freeze)
    parameter_groups(model, recipe.optimizer)
    strategies = ["auto", fsdp.NAME, *StrategyRegistry.available_strategies()]
    if recipe.trainer.strategy not in strategies:
        hint = did_you_mean(recipe.trainer.strategy, strategies)
        raise ValueError(f"unknown trainer.strategy {recipe.trainer.strategy!r}{hint}")
    if recipe.model.checkpoint and not str(recipe.model.checkpoint).startswith("hf-hub:"):
        find_weights(recipe.model.checkpoint)
    task.training().check(recipe)
    loggers.check(recipe.trainer)


def _schedule(recipe: Recipe, peak: float, steps_per_epoch: int) -> dict[str, Any]:
    schedule = recipe.schedule
    if schedule.epochs:
        unit, length, shown = steps_per_epoch, schedule.epochs, range(schedule.epochs)
    else:
        unit, length = 1, schedule.steps
        shown = range(0, length, max(1, length // 320))
    rates = {str(at): learning_rate(schedule, peak, at * unit, steps_per_epoch) for at in shown}
    if schedule.epochs:
        return {"epochs": length, "lr_per_epoch": rates}
    return {"steps": length, "lr_per_step": rates}


def _assumptions(task: Task[Any, Any, Any], recipe: Recipe, *, known: bool) -> list[str]:
    """Return what was assumed; ``known`` if the data were opened."""
    assumed = []
    if not known and not recipe.model.num_classes:
        assumed.append(f"{task.reference_classes} classes")
    if not known and recipe.data.batch_size == "auto":
        assumed.append("the task's usual data.batch_size, because the data decide on auto")
    if recipe.trainer.devices == "auto":
        assumed.append("one device per machine for trainer.devices auto")
    if not known and recipe.schedule.epochs and recipe.schedule.warmup_steps:
        assumed.append(f"{task.reference_images:,} training images")
    return assumed


def _data_lines(described: dict[str, Any]) -> list[str]:
    found = described["data"]
    if found is None:
        return [f"data        not opened; data.root is {described['recipe']['data']['root']!r}"]
    evaluated = "test" if found["test"] else "val, because there is no test split"
    return [
        f"data        {found['description']}; the first of each split can be loaded",
        f"evaluated   {evaluated}",
    ]


def _time(described: dict[str, Any]) -> str:
    times = described["time"]
    if times is None:
        return "not measured: that needs the data (--data.root DIR)"
    peak = times["peak_gib"]
    taken = "" if peak is None else f"; {peak:.1f} GiB were taken"
    several = described["devices"] > 1
    scaled = f", assumed to be as fast on {described['devices']} devices" if several else ""
    return (
        f"{duration(times['run'])} for the run: {duration(times['step'])} a step, "
        f"{duration(times['evaluation'])} an evaluation (measured on {times['machine']}"
        f"{scaled}{taken})"
    )


def _published(row: dict[str, Any]) -> str:
    numbers = ", ".join(f"{name} {value}" for name, value in row["numbers"].items())
    return f"{numbers} ({row['source']})" if numbers else "nothing: this is not a row of the paper"
