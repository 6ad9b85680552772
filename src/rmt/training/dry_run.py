"""What a recipe would do, found without training: size, cost, schedule, memory, first samples."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from lightning.pytorch.strategies import StrategyRegistry
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from rmt.classification.recipe import ClassificationRecipe
from rmt.messages import did_you_mean
from rmt.modeling.flops import count
from rmt.modeling.layers import Block
from rmt.modeling.pretrained import Pretrained, find_weights
from rmt.recipes import as_dict
from rmt.recipes.schema import Recipe, Schedule
from rmt.training import fsdp
from rmt.training.fit import load_recipe
from rmt.training.optim import accumulation, learning_rate, parameter_groups, peak_lr
from rmt.weights.load import task_module

# Where the data are not tried: classes, and training images of ImageNet-1K, COCO 2017 (those
# with a box) and ADE20K.
_CLASSES = {"classification": 1000, "detection": 80, "segmentation": 150}
_IMAGES = {"classification": 1_281_167, "detection": 117_266, "segmentation": 20_210}
_GIB = 2**30


def plan(
    name: str | Path, overrides: Sequence[str] = (), *, try_data: bool = False
) -> dict[str, Any]:
    """Describe a run as plain JSON values.

    Args:
        name: a shipped recipe or a YAML file.
        overrides: ``--key.sub value`` words.
        try_data: if ``data.root`` exists, open it and load the first sample of each part.

    Returns:
        ``params``; ``macs`` of one image of size ``input``, as :mod:`rmt.modeling.flops` counts (``macs_of``
        says of what: a detector's regions depend on the image, so its body and neck are counted);
        ``epochs`` and ``lr_per_epoch`` (epoch -> rate of its first step) or ``steps`` and
        ``lr_per_step``; ``batch``, images a step over all devices, and ``devices``,
        ``accumulated``, ``peak_lr``; ``memory_gib`` a device (see :func:`memory`); ``data``,
        if it was tried: ``classes``, images to ``train`` on, those ``shown`` in a pass, and those
        to choose by, ``val``; ``assumed``, what was taken for what only the data or the machine
        know; ``recipe``, every field.

    Raises:
        ValueError: for a mistake in the recipe, or a fault of the data.
    """
    recipe = load_recipe(name, overrides)
    run = recipe.trainer
    world = (1 if run.devices == "auto" else run.devices) * run.num_nodes
    accumulated = accumulation(recipe, world)
    batch = recipe.data.batch_size * world * accumulated
    data = _try_data(recipe) if try_data else None
    known = getattr(recipe.model, "num_classes", None) or _CLASSES[recipe.task]
    classes = data["classes"] if data else range(known)
    images = data["shown"] if data else _IMAGES[recipe.task]
    task = importlib.import_module(f"rmt.{recipe.task}.task")
    with torch.device("meta"):
        model = task.new_model(recipe, tuple(map(str, classes)))
    _check_parts(recipe, model, peak_lr(recipe, batch))
    measured, size = _part_to_measure(model, recipe)
    return {
        "title": recipe.title,
        "params": sum(p.numel() for p in model.parameters()),
        "macs": count(measured, size).macs,
        "macs_of": "all" if measured is model else "body and neck",
        "input": list(size),
        "batch": batch,
        "devices": world,
        "accumulated": accumulated,
        "peak_lr": peak_lr(recipe, batch),
        **_schedule(recipe, peak_lr(recipe, batch), max(1, images // batch)),
        "memory_gib": memory(model, measured, size, recipe),
        "data": data,
        "assumed": _assumptions(recipe, None if data else known),
        "published": {
            "source": recipe.published.source,
            "numbers": dict(recipe.published.numbers),
        },
        "recipe": as_dict(recipe),
    }


def _try_data(recipe: Recipe) -> dict[str, Any] | None:
    """Load the first samples, if there are data, and return the classes and how many images."""
    if not (recipe.data.root and Path(recipe.data.root).exists()):
        return None
    if getattr(recipe.data, "download", False):  # a description fetches nothing
        return None
    data = task_module(recipe.task, "data").DATA(recipe)
    shown = data.check_first_samples() * recipe.data.batch_size
    train, val = len(data.splits.train), len(data.splits.val)
    return {"classes": list(data.classes), "train": train, "shown": shown, "val": val}


def _check_parts(recipe: Recipe, model: nn.Module, peak: float) -> None:
    """Build what a run builds besides its network and data, to refuse here what it would refuse."""
    if peak <= 0:
        raise ValueError(f"optimizer.lr is {recipe.optimizer.lr}; it must be positive")
    parameter_groups(model, recipe.optimizer)
    strategies = ["auto", fsdp.NAME, *StrategyRegistry.available_strategies()]
    if recipe.trainer.strategy not in strategies:
        hint = did_you_mean(recipe.trainer.strategy, strategies)
        raise ValueError(f"unknown trainer.strategy {recipe.trainer.strategy!r}{hint}")
    if recipe.model.checkpoint and not str(recipe.model.checkpoint).startswith("hf-hub:"):
        find_weights(recipe.model.checkpoint)
    if isinstance(recipe, ClassificationRecipe):
        data = importlib.import_module("rmt.classification.datamodule")
        data.train_transform(recipe.data, recipe.augment)
        data.eval_transform_of(recipe.data)
        labels = recipe.token_labels
        if labels.root and labels.teacher:
            raise ValueError("token_labels.root and token_labels.teacher are both set; name one")
        if labels.teacher and not timm.is_model(labels.teacher):
            hint = did_you_mean(labels.teacher, timm.list_models())
            raise ValueError(f"unknown teacher {labels.teacher!r}{hint}")


def show(described: dict[str, Any], *, only_recipe: bool = False) -> str:
    """Return :func:`plan`'s answer as text; ``only_recipe`` gives its YAML, as a file may hold."""
    recipe = yaml.safe_dump(described["recipe"], sort_keys=False)
    if only_recipe:
        return recipe
    length = "epochs" if "epochs" in described else "steps"
    rates = described["lr_per_epoch" if length == "epochs" else "lr_per_step"]
    height, width = described["input"]
    one = described["recipe"]["data"]["batch"]
    kept = described["memory_gib"]
    parts = ", ".join(f"{key} {value:.2f}" for key, value in kept.items() if key != "total")
    return "\n".join(
        [
            described["title"],
            f"data        {_tried(described)}",
            f"parameters  {described['params']:,}",
            f"MACs        {described['macs'] / 1e9:.3f} G for one image of {height}x{width} "
            f"({described['macs_of']})",
            f"batch       {described['batch']} images a step = {one} x {described['devices']} "
            f"devices x {described['accumulated']} accumulated",
            f"{length:<11} {described[length]}",
            f"peak rate   {described['peak_lr']:.6g}",
            f"memory      {kept['total']:.1f} GiB a device: {parts}",
            "            (an estimate: tensors counted, no workspace, no fragmentation)",
            f"assumed     {'; '.join(described['assumed']) or 'nothing'}",
            f"published   {_published(described['published'])}",
            "",
            picture(list(rates.values()), f"learning rate over {described[length]} {length}"),
            "",
            recipe,
        ]
    )


def _tried(described: dict[str, Any]) -> str:
    found = described["data"]
    if found is None:
        return f"not tried; data.root is {described['recipe']['data']['root']!r}"
    classes, train, val = len(found["classes"]), found["train"], found["val"]
    return f"{classes} classes, {train} images to train on, {val} to choose by; the first ones load"


def _published(row: dict[str, Any]) -> str:
    numbers = ", ".join(f"{name} {value}" for name, value in row["numbers"].items())
    return f"{numbers} ({row['source']})" if numbers else "nothing: a recipe of our own"


def memory(
    model: Pretrained, measured: nn.Module, size: tuple[int, int], recipe: Recipe
) -> dict[str, float]:
    """Estimate what a training step holds on each device, in GiB.

    Weights with gradients, AdamW's two moments and the weight average are four bytes a number.
    Activations are those that autograd would keep for one image of ``size`` (caught by its hooks
    while ``measured`` runs on shapes alone, in two bytes a number where the precision is 16 bits),
    times the batch; with checkpointing, the blocks' inputs instead of what is inside them. Sharding
    over devices and the workspace of kernels are left out.
    """
    numbers = sum(p.numel() for p in model.parameters())
    learned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    parts = {
        "weights": 4 * numbers,
        "gradients": 4 * learned,
        "optimizer": 8 * learned,
        "average": 4 * numbers if recipe.ema.decay else 0,
        "activations": _activations(model, measured, size, recipe) * recipe.data.batch_size,
    }
    parts["total"] = sum(parts.values())
    return {name: round(value / _GIB, 3) for name, value in parts.items()}


def picture(values: Sequence[float], title: str, *, width: int = 60, height: int = 8) -> str:
    """Return a text curve of ``values``, the title above it."""
    width = min(width, len(values))
    columns = [values[(i * len(values)) // width] for i in range(width)]
    top = max(values) or 1.0
    levels = [math.ceil(value / top * height) for value in columns]
    rows = [
        f"{top * row / height:>10.2e} |" + "".join("█" if at >= row else " " for at in levels)
        for row in range(height, 0, -1)
    ]
    return "\n".join([title, *rows, " " * 11 + "+" + "-" * width])


def _part_to_measure(model: nn.Module, recipe: Recipe) -> tuple[nn.Module, tuple[int, int]]:
    """Return what has a cost that no image decides, and the size of the image it is shown."""
    if recipe.task == "detection":
        dense: Any = model
        return nn.Sequential(dense.backbone, dense.neck), (800, 1280)  # as the paper counts
    side = recipe.data.input_size if recipe.task == "classification" else recipe.data.crop
    return model, (side, side)


def _schedule(recipe: Recipe, peak: float, steps_per_epoch: int) -> dict[str, Any]:
    schedule: Schedule = recipe.schedule
    if bool(schedule.epochs) == bool(schedule.steps):
        raise ValueError(
            f"schedule.epochs is {schedule.epochs} and schedule.steps {schedule.steps}: "
            "exactly one of them must say how long the run is"
        )
    if schedule.epochs:
        unit, length, shown = steps_per_epoch, schedule.epochs, range(schedule.epochs)
    else:
        unit, length = 1, schedule.steps
        shown = range(0, length, max(1, length // 320))
    rates = {str(at): learning_rate(schedule, peak, at * unit, steps_per_epoch) for at in shown}
    if schedule.epochs:
        return {"epochs": length, "lr_per_epoch": rates}
    return {"steps": length, "lr_per_step": rates}


def _assumptions(recipe: Recipe, classes: int | None) -> list[str]:
    """Name what was assumed; ``classes`` is None where the data told them."""
    assumed = []
    if classes and not getattr(recipe.model, "num_classes", None):
        assumed.append(f"{classes} classes")
    if recipe.trainer.devices == "auto":
        assumed.append("one device a machine for trainer.devices auto")
    if classes and recipe.schedule.epochs and recipe.schedule.warmup_steps:
        assumed.append(f"{_IMAGES[recipe.task]:,} training images")
    return assumed


def _activations(
    model: Pretrained, measured: nn.Module, size: tuple[int, int], recipe: Recipe
) -> int:
    """Return bytes that autograd keeps for one image."""
    width = 2 if "16" in recipe.trainer.precision else 8 if "64" in recipe.trainer.precision else 4
    owned = {id(p) for p in measured.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # a storage's address names it as long as it lives
    inputs = 0

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in owned and tensor.is_floating_point():
            # A tensor kept twice, by the operation before and behind it, exists once.
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes() // tensor.element_size() * width
            alive.append(tensor)
        return tensor

    def count_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal inputs
        inputs += args[0].numel() * width

    if recipe.trainer.grad_checkpointing:
        model.set_grad_checkpointing()
        for module in model.modules():
            if isinstance(module, Block):
                module.register_forward_pre_hook(count_input)
    measured.train()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        measured(_image(measured, size, batch=2))
    # Two images, since batch norm in training refuses one where a map has a single token.
    return (sum(kept.values()) + inputs) // 2


def _image(model: nn.Module, size: tuple[int, int], *, batch: int = 1) -> Tensor:
    return torch.zeros(batch, 3, *size, device=next(model.parameters()).device)
