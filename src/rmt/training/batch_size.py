"""``data.batch_size auto``: the largest power of two that fits."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from rmt.data.loaders import DataModule
from rmt.modeling.memory import available_memory, training_memory
from rmt.modeling.pretrained import Pretrained, uses_gpu
from rmt.recipes.schema import Recipe
from rmt.task import Task
from rmt.training.trial import train_briefly

R = TypeVar("R", bound=Recipe)

#: Steps that an epoch has at least: fewer of larger batches train worse.
STEPS_PER_EPOCH = 10
#: Share of the free memory that a batch may take: batches differ, and memory fragments.
SHARE_OF_GPU, SHARE_OF_RAM = 0.85, 0.5


def with_batch_size(recipe: R, size: int) -> R:
    """Return a recipe with another ``data.batch_size``."""
    return replace(recipe, data=replace(recipe.data, batch_size=size))


def resolved(task: Task[Any, Any, Any], recipe: R, data: DataModule[Any, Any]) -> R:
    """Return a recipe with its batch size as a number; one that is given is kept.

    On a GPU, two batches of each size are trained on, with the run's own data, until one does not
    fit; on the CPU, the memory is estimated (:func:`rmt.modeling.memory.training_memory`).

    Args:
        task: of the recipe.
        recipe: of the run.
        data: of the run.

    Raises:
        ValueError: for several devices, which might find different sizes, or if not even the
            smallest batch fits.
    """
    if recipe.data.batch_size != "auto":
        return recipe
    config, train = recipe.trainer, data.splits.train
    on_gpu = uses_gpu(config.accelerator)
    several = config.devices == "auto" and on_gpu and torch.cuda.device_count() > 1
    if several or config.devices not in (1, "auto") or config.num_nodes > 1:
        raise ValueError(
            "data.batch_size is 'auto', which is for one device: find it with --dry-run and "
            "--trainer.devices 1, and give the number"
        )
    data.recipe = with_batch_size(recipe, 1)
    images = 0 if train is None else len(data.train_batches(train, rank=0, world=1))
    most = config.global_batch_size or max(1, images // STEPS_PER_EPOCH)
    # Batch norm needs two images, where the data have them.
    sizes = [2**power for power in range(1, most.bit_length()) if 2**power <= most] or [1]
    fits = _fits_gpu if on_gpu else _fits_ram
    found = 0
    for size in sizes:
        if not fits(task, with_batch_size(recipe, size), data):
            break
        found = size
    if not found:
        raise ValueError(
            f"data.batch_size is 'auto', and not even {sizes[0]} images fit into memory: use "
            "smaller images, a smaller model or trainer.grad_checkpointing"
        )
    why = "that fits" if found < sizes[-1] else "that the run's length or batch size allows"
    rank_zero_only(print)(f"data.batch_size auto: {found}, the largest power of two {why}")
    return with_batch_size(recipe, found)


def memory_of(
    recipe: Recipe, model: Pretrained, measured: nn.Module, size: tuple[int, int]
) -> dict[str, float]:
    """Return :func:`rmt.modeling.memory.training_memory` of a recipe's run.

    Args:
        recipe: with the batch size as a number.
        model: the network to train.
        measured: the part of it whose activations are counted.
        size: (h, w) of an image.
    """
    precision = recipe.trainer.precision
    return training_memory(
        model,
        measured,
        size,
        batch_size=recipe.data.images_per_batch,
        ema=bool(recipe.ema.decay),
        grad_checkpointing=recipe.trainer.grad_checkpointing,
        bytes_per_activation=2 if "16" in precision else 8 if "64" in precision else 4,
    )


def _fits_gpu(task: Task[Any, Any, Any], recipe: Recipe, data: DataModule[Any, Any]) -> bool:
    own, data.recipe = data.recipe, recipe
    free, _ = torch.cuda.mem_get_info()
    try:
        taken = train_briefly(task, recipe, data, batches=2)
    except torch.OutOfMemoryError:
        return False
    finally:
        data.recipe = own
        gc.collect()  # the module and its trainer hold each other
        torch.cuda.empty_cache()
    return taken is not None and taken <= SHARE_OF_GPU * free


def _fits_ram(task: Task[Any, Any, Any], recipe: Recipe, data: DataModule[Any, Any]) -> bool:
    with torch.device("meta"):
        model = task.new_model(recipe, data.classes)
    measured = task.countable(model)
    needed = memory_of(recipe, model, measured, task.train_size(recipe))["total"]
    return needed * 2**30 <= SHARE_OF_RAM * available_memory()
