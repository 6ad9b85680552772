"""The training of one model, whatever its task: optimizer, schedule, weight average, randomness.

A task derives from :class:`Engine` and says what its losses and metrics are. Everything that a
step draws at random is a function of (seed, step, rank), so that a resumed run equals one that
was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import lightning as L
import torch
from timm.optim import param_groups_layer_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from rmt import sharding
from rmt.hub import Pretrained
from rmt.loading import mix, seed_all
from rmt.recipes import as_dict
from rmt.recipes.schema import Optimizer, Recipe, Schedule

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm)


class Engine(L.LightningModule):
    """What every task's training has in common.

    Args:
        model: the network; its ``describe()`` travels in each checkpoint.
        recipe: of the task.

    Attributes:
        key: the metric that decides which weights are best; larger is better.
        history: one record an evaluation, kept through interruptions.
        best_weights: ``"raw"`` or ``"ema"``, whichever was better at the best evaluation.
        verdict: weights -> metrics of the last evaluation; Lightning rounds its own to float32.
    """

    key: ClassVar[str]
    model: Any  # the task's kind of Pretrained
    recipe: Any  # and of Recipe

    def __init__(self, model: Pretrained, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        average = recipe.average
        self.ema: ModelEmaV3 | None = None
        if average.decay:
            # One tensor at a time: sharded weights and whole statistics make no common list.
            each = recipe.trainer.strategy == sharding.NAME
            self.ema = ModelEmaV3(
                model, decay=average.decay, use_warmup=average.warmup, foreach=not each
            )
            self.ema.requires_grad_(False)
        self.history: list[dict[str, float]] = []
        self.verdict: dict[str, dict[str, float]] = {}
        self.best_weights = "raw"
        self.best_score = -math.inf
        # In a tuple: as a module it would put all weights into a checkpoint a second time.
        self._network = (torch.compile(model) if recipe.trainer.compile else model,)
        if recipe.trainer.checkpointing:
            model.set_grad_checkpointing()

    # What a task says.

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Return the named losses of a training batch; their sum is minimised."""
        raise NotImplementedError

    def score(self, weights: str, model: nn.Module, batch: Any) -> None:
        """Judge one evaluation batch with ``model`` into the metrics kept for ``weights``."""
        raise NotImplementedError

    def metrics(self, weights: str) -> dict[str, float]:
        """Return the metrics kept for ``weights`` over the whole set, and start anew."""
        raise NotImplementedError

    # The loop's hooks.

    @property
    def network(self) -> Callable[..., Any]:
        """The network to train, compiled if the recipe says so."""
        return self._network[0]

    def kept_weights(self) -> dict[str, nn.Module]:
        """Return the networks that are evaluated: raw, and their average if there is one."""
        return {"raw": self.model} | ({"ema": self.ema.module} if self.ema else {})

    def global_batch(self) -> int:
        """Return images a step over all devices and machines."""
        world = self.trainer.world_size
        return self.recipe.data.batch * accumulation(self.recipe, world) * world

    def configure_model(self) -> None:
        """Give the networks the form in which a resumed run's weights are read."""
        run = self.recipe.trainer
        if run.precision == "64-true":
            self.double()  # Lightning does so too, but behind the reading, which would round
        if run.strategy == sharding.NAME and self.device_mesh is not None:
            for network in self.kept_weights().values():
                sharding.shard(network, self.device_mesh, sync_batchnorm=run.sync_batchnorm)

    def configure_optimizers(self) -> Any:
        """Return AdamW with the release's parameter groups, and the schedule as a step function."""
        recipe = self.recipe.optimizer
        peak = peak_lr(self.recipe, self.global_batch())
        if peak <= 0:
            raise ValueError(f"optimizer.lr is {recipe.lr}; it must be positive")
        groups = parameter_groups(self.model, recipe)
        for group in groups:
            group["lr"] = peak * group.get("lr_scale", 1.0)
        optimizer = torch.optim.AdamW(groups, lr=peak, betas=recipe.betas, eps=recipe.eps)
        steps = self.steps_per_epoch()

        def share(step: int) -> float:
            return learning_rate(self.recipe.schedule, peak, step, steps) / peak

        rule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rule, "interval": "step"}}

    def steps_per_epoch(self) -> int:
        """Return optimizer steps an epoch."""
        # Not `estimated_stepping_batches`: it fixes the loader's position before a resumed run
        # has read its own.
        trainer: Any = self.trainer  # Lightning does not declare what fit() sets
        batches = len(trainer.datamodule.train_dataloader())
        return math.ceil(batches / accumulation(self.recipe, self.trainer.world_size))

    def on_fit_start(self) -> None:
        """Say the batch, and raise the average's decay to its share of the reference batch."""
        world, batch = self.trainer.world_size, self.global_batch()
        self.print(
            f"{batch} images a step: {self.recipe.data.batch} x {world} devices x "
            f"{accumulation(self.recipe, world)} accumulated; peak learning rate "
            f"{peak_lr(self.recipe, batch):.6g}"
        )
        average = self.recipe.average
        if self.ema and average.reference_batch:
            self.ema.decay = average.decay ** (batch / average.reference_batch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed this batch's randomness, whatever came before it."""
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        seed_all(mix(self.recipe.seed, batches, self.global_rank))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the sum of the losses and log each."""
        losses = self.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            raise FloatingPointError(
                f"the loss became {total.item()} at step {self.global_step} "
                f"({ {k: v.item() for k, v in losses.items()} }): lower optimizer.lr, set "
                "optimizer.clip_grad, or train in 32-true"
            )
        self.log("loss", total, prog_bar=True)
        if len(losses) > 1:
            self.log_dict({f"loss/{name}": value for name, value in losses.items()})
        return total

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the average."""
        super().optimizer_step(*args, **kwargs)
        if self.ema:
            # Told the step, timm begins with copies of the weights.
            step = self.global_step if self.recipe.average.warmup else None
            self.ema.update(self.model, step=step)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Have the weights of a run's last step judged, wherever the interval falls."""
        if self.recipe.schedule.steps and self.global_step >= self.recipe.schedule.steps:
            self.trainer.should_stop = True

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Judge raw weights and their average."""
        for weights, model in self.kept_weights().items():
            self.score(weights, model, batch)

    def on_validation_epoch_end(self) -> None:
        """Log all metrics, and remember whether the raw weights or their average were better."""
        self.verdict = {weights: self.metrics(weights) for weights in self.kept_weights()}
        if self.trainer.sanity_checking:
            return
        values = self.verdict
        best = max(values, key=lambda weights: values[weights][self.key])
        record = {f"{w}/{name}": v for w, found in values.items() for name, v in found.items()}
        self.log_dict(record, sync_dist=False)
        self.log(f"val/{self.key}", values[best][self.key], prog_bar=True)
        if values[best][self.key] > self.best_score:
            self.best_score, self.best_weights = values[best][self.key], best
        if self.trainer.state.fn == "fit":
            loss = self.trainer.callback_metrics.get("loss")
            record |= {"epoch": self.current_epoch, "step": self.global_step}
            self.history.append(record | ({"loss": float(loss)} if loss is not None else {}))

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put into the file what is needed to use and to resume it, as plain values."""
        checkpoint["rmt"] = {
            "description": self.model.describe() | {"recipe": as_dict(self.recipe)},
            "best_weights": self.best_weights,
            "best_score": self.best_score,
            "history": self.history,
        }

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Take up the history of the run that is resumed."""
        kept = checkpoint["rmt"]
        self.history = list(kept["history"])
        self.best_weights, self.best_score = kept["best_weights"], kept["best_score"]


def accumulation(recipe: Recipe, world: int) -> int:
    """Return batches a step on ``world`` devices: as many as come nearest to the global batch.

    Raises:
        ValueError: if the recipe names both the global batch and a number of batches.
    """
    run = recipe.trainer
    if not run.global_batch:
        return run.accumulate
    if run.accumulate != 1:
        raise ValueError(
            f"trainer.accumulate is {run.accumulate} and trainer.global_batch {run.global_batch}: "
            "the one follows from the other; name one of them (--trainer.global_batch 0)"
        )
    return max(1, round(run.global_batch / (recipe.data.batch * world)))


def peak_lr(recipe: Recipe, global_batch: int) -> float:
    """Return the peak learning rate for ``global_batch`` images a step."""
    optimizer = recipe.optimizer
    share = global_batch / optimizer.reference_batch if optimizer.reference_batch else 1.0
    return optimizer.lr * share


def learning_rate(schedule: Schedule, peak: float, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of an optimizer step.

    Args:
        schedule: of the recipe.
        peak: the rate behind the warm-up.
        step: optimizer steps done.
        steps_per_epoch: of this run.
    """
    if schedule.by_epoch:
        epoch = max(step // steps_per_epoch - schedule.lag, 0)
        at, unit = float(epoch), 1.0
    else:
        at, unit = float(step), float(steps_per_epoch)
    total = schedule.epochs * unit if schedule.epochs else float(schedule.steps)
    warm = max(schedule.warmup_epochs * unit, 0 if schedule.by_epoch else schedule.warmup_steps)
    aim = peak
    if schedule.shape == "poly":  # mmcv warms up to the falling curve, timm to its start
        fall = (1 - min(at / total, 1.0)) ** schedule.power
        aim = schedule.min_lr + (peak - schedule.min_lr) * fall
    if at < warm:
        low = schedule.warmup_lr or aim * schedule.warmup_ratio
        return low + (aim - low) * at / warm
    if schedule.shape == "cosine":
        fall = 0.5 * (1 + math.cos(math.pi * min(at / total, 1.0)))
        return schedule.min_lr + (peak - schedule.min_lr) * fall
    if schedule.shape == "step":
        return peak * schedule.factor ** sum(at >= m * unit for m in schedule.milestones)
    return aim


def is_within(name: str, part: str) -> bool:
    """Return whether a module's or parameter's name is ``part`` or lies below it."""
    return f"{name}.".startswith(f"{part.rstrip('.')}.")


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Leave the parameters of the named parts as they are.

    Raises:
        ValueError: for a part that has none.
    """
    for part in parts:
        frozen = [p for name, p in model.named_parameters() if is_within(name, part)]
        if not frozen:
            raise ValueError(f"model.freeze names {part!r}; no parameter lies there")
        for parameter in frozen:
            parameter.requires_grad_(False)


def parameter_groups(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Split parameters by weight decay, and by depth where ``layer_decay`` is below 1.

    Raises:
        ValueError: for ``layer_decay`` with a model that does not say how deep its parameters lie,
            or if everything is frozen.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model.freeze leaves nothing to train; leave out the last layer at least")
    spared = _spared(model, optimizer.no_decay)
    if optimizer.layer_decay < 1:
        if not hasattr(model, "group_matcher"):  # timm would treat all alike
            raise ValueError(
                f"optimizer.layer_decay is {optimizer.layer_decay}, but a {type(model).__name__} "
                "has no order of depth; it is for classifiers: leave it at 1"
            )
        return param_groups_layer_decay(
            model,
            optimizer.weight_decay,
            no_weight_decay_list=spared,
            weight_decay_exclude_1d=False,
            layer_decay=optimizer.layer_decay,
        )
    decay, rest = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (rest if name in spared else decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": optimizer.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _spared(model: nn.Module, what: str) -> set[str]:
    """Return the names of the parameters that :attr:`Optimizer.no_decay` spares."""
    if what == "norms":
        return {
            f"{path}.{name}"
            for path, module in model.named_modules()
            if isinstance(module, _NORMS)
            for name, _ in module.named_parameters(recurse=False)
        }
    if what == "vectors":
        # The release keeps LayerScale as (1, 1, 1, C), which its rule of one-dimensional
        # parameters does not catch.
        return {
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim < 2 and not name.endswith(".gamma")
        }
    return set()
