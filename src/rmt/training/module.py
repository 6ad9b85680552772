"""The LightningModule of any task: optimizer, schedule, EMA, evaluation, randomness.

All random numbers of a step are a function of (seed, step, rank), so that a resumed run equals one
that was never interrupted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from rmt.data.loaders import DataModule
from rmt.data.seeding import derive_seed, seed_all
from rmt.modeling.pretrained import Pretrained
from rmt.recipes import as_dict
from rmt.recipes.schema import Recipe
from rmt.task import Metrics, Task
from rmt.training import fsdp
from rmt.training.lightning import batches_per_epoch, batches_started
from rmt.training.optim import (
    BatchSize,
    freeze,
    has_come_down,
    learning_rate,
    parameter_groups,
    peak_lr,
)
from rmt.weights.load import load_body

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Best:
    """The best evaluation of a run so far.

    Attributes:
        score: value of the task's ``monitor``.
        weights: ``raw`` or ``ema``, whichever was better.
        at: number of the evaluation, from 0.
    """

    score: float = -math.inf
    weights: str = "raw"
    at: int = -1


class TrainingModule(L.LightningModule):
    """A model with everything that its training and evaluation need.

    Args:
        task: of the model.
        recipe: of the run.
        model: to train or to evaluate; its ``describe()`` is saved in each checkpoint.
        data: of the run.
        train: False to evaluate only.

    Attributes:
        ema: moving average of the weights, or None.
        best: the best evaluation so far.
        history: one record per evaluation, also of those before an interruption.
        forgets_best: set if the best weights of a resumed run are lost.
        results: weights -> metrics of the last evaluation; Lightning rounds its own to float32.
    """

    def __init__(
        self,
        task: Task[Any, Any, Any],
        recipe: Recipe,
        model: Pretrained,
        data: DataModule[Any, Any],
        *,
        train: bool,
    ) -> None:
        super().__init__()
        self.task, self.recipe, self.model = task, recipe, model
        self.monitor = task.monitor(recipe)
        self.splits = data.splits
        self.ema: ModelEmaV3 | None = None
        self.history: list[dict[str, float]] = []
        self.results: dict[str, dict[str, float]] = {}
        self.best = Best()
        self.forgets_best = False
        self.metrics = nn.ModuleDict()
        self._noted: set[str] = set()
        if not train:
            return
        self.criterion = task.training().criterion(recipe, model, data.splits.train)
        self._frozen = freeze(model, recipe.model.freeze)
        if recipe.ema.decay:
            # One tensor at a time: the fused operations do not take sharded weights together with
            # statistics, which are not sharded.
            self.ema = ModelEmaV3(
                model,
                decay=recipe.ema.decay,
                use_warmup=recipe.ema.warmup,
                foreach=recipe.trainer.strategy != fsdp.NAME,
            )
            self.ema.requires_grad_(False)
        # In a tuple, because a submodule would be saved in checkpoints a second time.
        self._network = (model.compiled() if recipe.trainer.compile else model,)
        if recipe.trainer.grad_checkpointing:
            model.set_grad_checkpointing()

    @property
    def network(self) -> Callable[..., Any]:
        """The network to train, compiled if the recipe says so."""
        return self._network[0]

    def evaluated_weights(self) -> dict[str, nn.Module]:
        """Return the networks that are evaluated: raw, and their EMA if there is one."""
        return {"raw": self.model} | ({"ema": self.ema.module} if self.ema else {})

    def batch_size(self) -> BatchSize:
        """Return images per step over all devices and machines."""
        return BatchSize.of(self.recipe, self.trainer.world_size)

    def start_from(self, checkpoint: str) -> list[str]:
        """Copy trained weights into the network and its EMA as far as they fit.

        Returns:
            The names of what stays randomly initialised.
        """
        new = load_body(self.model, checkpoint)
        if self.ema:
            self.ema.set(self.model)
        return new

    def has_come_down(self, step: int, fraction: float) -> bool:
        """Return whether the learning rate stays low after a step, once the optimizer is made."""
        peak, steps = peak_lr(self.recipe, self.batch_size().total), self._steps_per_epoch
        return has_come_down(self.recipe.schedule, peak, step, steps, fraction)

    # The loop's hooks.

    def setup(self, stage: str) -> None:
        """Create the metrics of the split that this stage evaluates."""
        is_test = stage == "test"
        samples = self.splits.evaluated if is_test else self.splits.val
        new = self.task.training().metrics
        for weights in self.evaluated_weights():
            made: Any = new(self.recipe, self.model, samples, is_test)
            self.metrics[weights] = made

    def configure_model(self) -> None:
        """Cast and shard the networks, before the weights of a resumed run are read."""
        config = self.recipe.trainer
        if config.precision == "64-true":
            self.double()  # Lightning does so after reading the weights, which would round them
        if config.strategy == fsdp.NAME and self.device_mesh is not None:
            for network in self.evaluated_weights().values():
                fsdp.shard(network, self.device_mesh, sync_batchnorm=config.sync_batchnorm)

    def configure_optimizers(self) -> Any:
        """Return AdamW with the release's parameter groups, and the schedule as a step function."""
        recipe = self.recipe.optimizer
        peak = peak_lr(self.recipe, self.batch_size().total)
        groups = parameter_groups(self.model, recipe)
        for group in groups:
            group["lr"] = peak * group.get("lr_scale", 1.0)
        optimizer = torch.optim.AdamW(groups, lr=peak, betas=recipe.betas, eps=recipe.eps)
        self._steps_per_epoch = math.ceil(
            batches_per_epoch(self.trainer) / self.batch_size().accumulation
        )

        def relative(step: int) -> float:
            return learning_rate(self.recipe.schedule, peak, step, self._steps_per_epoch) / peak

        rule = torch.optim.lr_scheduler.LambdaLR(optimizer, relative)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rule, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Print the batch size, and scale the EMA's decay to it."""
        size = self.batch_size()
        self.print(f"{size}; peak learning rate {peak_lr(self.recipe, size.total):.6g}")
        config = self.recipe.ema
        if self.ema and config.reference_batch_size:
            self.ema.decay = config.decay ** (size.total / config.reference_batch_size)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed this batch's randomness, and keep frozen modules in evaluation mode."""
        seed_all(derive_seed(self.recipe.seed, batches_started(self.trainer), self.global_rank))
        for module in self._frozen:
            module.eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the sum of the losses and log each."""
        losses, logged = self.criterion(self.network, batch)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            each = ", ".join(f"{name} {value.item():g}" for name, value in losses.items())
            raise FloatingPointError(
                f"the loss became {total.item()} at step {self.global_step} ({each}): lower "
                "optimizer.lr, set optimizer.clip_grad, or train in 32-true"
            )
        self.log("loss", total, prog_bar=True)
        if len(losses) > 1:
            self.log_dict({f"loss/{name}": value for name, value in losses.items()})
        for name, value in logged.items():
            self.log(name, value, prog_bar=True)
        return total

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then update the EMA."""
        super().optimizer_step(*args, **kwargs)
        if self.ema:
            # If timm gets the step, its EMA begins with copies of the weights.
            step = self.global_step if self.recipe.ema.warmup else None
            self.ema.update(self.model, step=step)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop after the run's last step, so that its weights are evaluated."""
        if self.recipe.schedule.steps and self.global_step >= self.recipe.schedule.steps:
            self.trainer.should_stop = True

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Evaluate raw weights and their EMA."""
        for weights, model in self.evaluated_weights().items():
            self._metrics(weights).update(model, batch)

    def on_validation_epoch_end(self) -> None:
        """Log all metrics, and remember the best evaluation."""
        self.results = {weights: self._compute(weights) for weights in self.evaluated_weights()}
        if self.trainer.sanity_checking:
            return
        monitor, values = self.monitor, self.results
        better = max(values, key=lambda weights: values[weights][monitor])
        record = {f"{w}/{name}": v for w, found in values.items() for name, v in found.items()}
        self.log_dict(record, sync_dist=False)
        self.log(f"val/{monitor}", values[better][monitor], prog_bar=True)
        if self.trainer.state.fn == "fit":
            if values[better][monitor] > self.best.score:
                self.best = Best(values[better][monitor], better, len(self.history))
            loss = self.trainer.callback_metrics.get("loss")
            record |= {"epoch": self.current_epoch, "step": self.global_step}
            self.history.append(record | ({"loss": float(loss)} if loss is not None else {}))

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to use the weights and to resume the run, as plain values."""
        checkpoint["rmt"] = {
            "description": self.model.describe({"recipe": as_dict(self.recipe)}),
            "best": {"score": self.best.score, "weights": self.best.weights, "at": self.best.at},
            "history": self.history,
        }

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Restore the history of the resumed run."""
        kept = checkpoint["rmt"]
        self.history = list(kept["history"])
        self.best = Best() if self.forgets_best else Best(**kept["best"])

    def _metrics(self, weights: str) -> Metrics:
        metrics: Any = self.metrics[weights]
        return metrics

    def _compute(self, weights: str) -> dict[str, float]:
        metrics = self._metrics(weights)
        found = metrics.compute()
        for note in metrics.notes:  # once per run, for raw weights and EMA together
            if note not in self._noted and self.trainer.is_global_zero:
                self._noted.add(note)
                log.warning("%s", note)
        return found
