"""The training of one model, whatever its task: optimizer, schedule, weight average, randomness.

A task derives from :class:`Engine` and says what its losses and metrics are. Everything that a
step draws at random is a function of (seed, step, rank), so that a resumed run equals one that
was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import lightning as L
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from rmt.data.seeding import derive_seed, seed_all
from rmt.modeling.pretrained import Pretrained
from rmt.recipes import as_dict
from rmt.recipes.schema import Recipe
from rmt.training import fsdp
from rmt.training.optim import accumulation, learning_rate, parameter_groups, peak_lr


class Engine(L.LightningModule):
    """What every task's training has in common.

    Args:
        model: the network; its ``describe()`` travels in each checkpoint.
        recipe: of the task.

    Attributes:
        key: the metric that decides which weights are best; larger is better.
        history: one record an evaluation, kept through interruptions.
        best_weights: ``"raw"`` or ``"ema"``, whichever was better at the best evaluation.
        results: weights -> metrics of the last evaluation; Lightning rounds its own to float32.
    """

    key: ClassVar[str]
    model: Any  # the task's kind of Pretrained
    recipe: Any  # and of Recipe

    def __init__(self, model: Pretrained, recipe: Recipe) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        average = recipe.ema
        self.ema: ModelEmaV3 | None = None
        if average.decay:
            # One tensor at a time: sharded weights and whole statistics make no common list.
            each = recipe.trainer.strategy == fsdp.NAME
            self.ema = ModelEmaV3(
                model, decay=average.decay, use_warmup=average.warmup, foreach=not each
            )
            self.ema.requires_grad_(False)
        self.history: list[dict[str, float]] = []
        self.results: dict[str, dict[str, float]] = {}
        self.best_weights = "raw"
        self.best_score = -math.inf
        # In a tuple: as a module it would put all weights into a checkpoint a second time.
        self._network = (torch.compile(model) if recipe.trainer.compile else model,)
        if recipe.trainer.grad_checkpointing:
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

    def global_batch_size(self) -> int:
        """Return images a step over all devices and machines."""
        world = self.trainer.world_size
        return self.recipe.data.batch_size * accumulation(self.recipe, world) * world

    def configure_model(self) -> None:
        """Give the networks the form in which a resumed run's weights are read."""
        run = self.recipe.trainer
        if run.precision == "64-true":
            self.double()  # Lightning does so too, but behind the reading, which would round
        if run.strategy == fsdp.NAME and self.device_mesh is not None:
            for network in self.kept_weights().values():
                fsdp.shard(network, self.device_mesh, sync_batchnorm=run.sync_batchnorm)

    def configure_optimizers(self) -> Any:
        """Return AdamW with the release's parameter groups, and the schedule as a step function."""
        recipe = self.recipe.optimizer
        peak = peak_lr(self.recipe, self.global_batch_size())
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
        world, batch = self.trainer.world_size, self.global_batch_size()
        self.print(
            f"{batch} images a step: {self.recipe.data.batch_size} x {world} devices x "
            f"{accumulation(self.recipe, world)} accumulated; peak learning rate "
            f"{peak_lr(self.recipe, batch):.6g}"
        )
        average = self.recipe.ema
        if self.ema and average.reference_batch_size:
            self.ema.decay = average.decay ** (batch / average.reference_batch_size)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed this batch's randomness, whatever came before it."""
        batches = self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        seed_all(derive_seed(self.recipe.seed, batches, self.global_rank))

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
            step = self.global_step if self.recipe.ema.warmup else None
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
        self.results = {weights: self.metrics(weights) for weights in self.kept_weights()}
        if self.trainer.sanity_checking:
            return
        values = self.results
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
