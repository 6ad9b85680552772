"""Batch size, learning rate, and parameter groups by weight decay and depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from timm.optim import param_groups_layer_decay
from torch import nn

from rmt.modeling.pretrained import Pretrained
from rmt.recipes.schema import Optimizer, Recipe, Schedule

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True)
class BatchSize:
    """How many images one optimizer step takes.

    Attributes:
        per_device: images per batch and device.
        devices: over all machines.
        accumulation: batches per optimizer step.
    """

    per_device: int
    devices: int
    accumulation: int

    @classmethod
    def of(cls, recipe: Recipe, devices: int) -> Self:
        """Return the recipe's batch size on ``devices``, as near as possible to the global one."""
        each, config = recipe.data.images_per_batch, recipe.trainer
        if not config.global_batch_size:
            return cls(each, devices, config.accumulate_grad_batches)
        return cls(each, devices, max(1, round(config.global_batch_size / (each * devices))))

    @property
    def total(self) -> int:
        """The global batch size: images per step."""
        return self.per_device * self.devices * self.accumulation

    def __str__(self) -> str:
        def some(count: int, what: str) -> str:
            return f"{count} {what}{'' if count == 1 else 's'}"

        return (
            f"global batch size {self.total} = {self.per_device} per device × "
            f"{some(self.devices, 'device')} × {some(self.accumulation, 'accumulation step')}"
        )


def peak_lr(recipe: Recipe, global_batch_size: int) -> float:
    """Return the peak learning rate for ``global_batch_size`` images per step."""
    optimizer = recipe.optimizer
    if not optimizer.reference_batch_size:
        return optimizer.lr
    return optimizer.lr * (global_batch_size / optimizer.reference_batch_size)


def learning_rate(schedule: Schedule, peak: float, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of an optimizer step.

    Args:
        schedule: of the recipe.
        peak: the rate after the warm-up.
        step: optimizer steps done.
        steps_per_epoch: optimizer steps per epoch.
    """
    if schedule.by_epoch:
        epoch = max(step // steps_per_epoch - schedule.lag, 0)
        at, unit = float(epoch), 1.0
    else:
        at, unit = float(step), float(steps_per_epoch)
    total = schedule.epochs * unit if schedule.epochs else float(schedule.steps)
    warm = max(schedule.warmup_epochs * unit, 0 if schedule.by_epoch else schedule.warmup_steps)
    aim = peak
    if schedule.name == "poly":  # mmcv warms up to the falling curve, timm to its start
        fall = (1 - min(at / total, 1.0)) ** schedule.power
        aim = schedule.min_lr + (peak - schedule.min_lr) * fall
    if at < warm:
        low = schedule.warmup_lr or aim * schedule.warmup_ratio
        return low + (aim - low) * at / warm
    if schedule.name == "cosine":
        fall = 0.5 * (1 + math.cos(math.pi * min(at / total, 1.0)))
        return schedule.min_lr + (peak - schedule.min_lr) * fall
    if schedule.name == "step":
        return peak * schedule.factor ** sum(at >= m * unit for m in schedule.milestones)
    return aim


def has_come_down(
    schedule: Schedule, peak: float, step: int, steps_per_epoch: int, fraction: float
) -> bool:
    """Return whether the learning rate stays low from an optimizer step to the end of the run.

    Args:
        schedule: of the recipe.
        peak: the rate after the warm-up.
        step: optimizer steps done.
        steps_per_epoch: optimizer steps per epoch.
        fraction: of the peak that counts as low; if the rate does not get there, its lowest value.
    """
    steps = schedule.steps or schedule.epochs * steps_per_epoch
    ends = learning_rate(schedule, peak, max(0, steps - 1), steps_per_epoch)
    warm = max(schedule.warmup_epochs * steps_per_epoch, schedule.warmup_steps)
    now = learning_rate(schedule, peak, step, steps_per_epoch)
    return step >= min(warm, steps) and now <= max(fraction * peak, ends)


def freeze(model: nn.Module, parts: Sequence[str]) -> list[nn.Module]:
    """Stop training the named modules (or single parameters), and return the modules.

    The caller keeps the returned modules in evaluation mode, so that the statistics of their batch
    norms do not change and no dropout is applied.

    Raises:
        ValueError: for a name without parameters.
    """
    for part in parts:
        frozen = [p for name, p in model.named_parameters() if _is_within(name, part)]
        if not frozen:
            ends = (name for name, _ in model.named_modules() if name.endswith(f".{part}"))
            hint = f"; did you mean {named!r}?" if (named := next(ends, "")) else ""
            raise ValueError(f"model.freeze names {part!r}; the model has no parameter there{hint}")
        for parameter in frozen:
            parameter.requires_grad_(False)
    return [
        module
        for name, module in model.named_modules()
        if any(_is_within(name, part) for part in parts)
    ]


def parameter_groups(model: Pretrained, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Split parameters by weight decay, and by depth where ``layer_decay`` is below 1.

    Raises:
        ValueError: for ``layer_decay`` with a model that does not order its layers by depth, or if
            everything is frozen.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model.freeze leaves nothing to train; do not freeze the last layer")
    if optimizer.layer_decay < 1:
        ordered = model.layers_by_depth
        if ordered is None:  # timm would treat all alike
            raise ValueError(
                f"optimizer.layer_decay is {optimizer.layer_decay}, but only classifiers that "
                "order their layers by depth (timm's group_matcher) support it, not a "
                f"{type(model.body).__name__} in a {type(model).__name__}; set it to 1"
            )
        return param_groups_layer_decay(
            ordered,
            optimizer.weight_decay,
            no_weight_decay_list=_exempt(ordered, optimizer.no_decay),
            weight_decay_exclude_1d=False,
            layer_decay=optimizer.layer_decay,
        )
    exempt = _exempt(model, optimizer.no_decay)
    decay, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (rest if name in exempt else decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": optimizer.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _is_within(name: str, part: str) -> bool:
    return f"{name}.".startswith(f"{part.rstrip('.')}.")


def _exempt(model: nn.Module, what: str) -> set[str]:
    """Return the names of the parameters that :attr:`Optimizer.no_decay` exempts."""
    if what == "norms":
        return {
            f"{path}.{name}"
            for path, module in model.named_modules()
            if isinstance(module, _NORMS)
            for name, _ in module.named_parameters(recurse=False)
        }
    if what == "bias_and_norm":
        # The release keeps LayerScale as (1, 1, 1, C), which its rule of one-dimensional
        # parameters does not catch.
        return {
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim < 2 and not name.endswith(".gamma")
        }
    return set()
