"""The sections of a recipe that all tasks share: model, data, optimizer, schedule, EMA, trainer.

Plain records without torch. A recipe file states only what differs from these defaults. Each number
is checked against the range that is given with its default. The file is long because each key is
explained where it is declared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self

from rmt.messages import did_you_mean

#: Key of a field's ``Range`` in its metadata.
RANGE = "range"
#: Name of a network that the machine chooses.
AUTO = "auto"
#: What ``trainer.logger`` may name.
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")


@dataclass(frozen=True)
class Range:
    """The values that a number may take.

    Attributes:
        low: smallest value.
        high: largest value.
        above: ``low`` itself is excluded.
        below: ``high`` itself is excluded.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and (
            value < self.high if self.below else value <= self.high
        )

    def __str__(self) -> str:
        bounds = []
        if self.low > -math.inf:
            bounds.append(f"{'greater than' if self.above else 'at least'} {self.low:g}")
        if self.high < math.inf:
            bounds.append(f"{'less than' if self.below else 'at most'} {self.high:g}")
        return " and ".join(bounds)


def number(
    default: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> Any:
    """Return a dataclass field for a number, or a tuple of numbers, within a range.

    Args:
        default: value; None is not checked.
        low: smallest value.
        high: largest value.
        above: exclude ``low`` itself.
        below: exclude ``high`` itself.
    """
    return field(default=default, metadata={RANGE: Range(low, high, above, below)})


@dataclass(kw_only=True, frozen=True)
class Section:
    """A section of a recipe; its numbers are checked when it is made.

    Attributes:
        key: name of the section in the recipe.
    """

    key: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for each in fields(self):
            allowed: Range | None = each.metadata.get(RANGE)
            for value in _numbers(getattr(self, each.name)):
                if allowed is not None and value not in allowed:
                    raise ValueError(f"{self.key}.{each.name} is {value}; it must be {allowed}")

    def check_order(self, name: str) -> None:
        """Raise ``ValueError`` unless a pair is given as the smaller and then the larger value."""
        low, high = getattr(self, name)
        if not low <= high:
            raise ValueError(
                f"{self.key}.{name} is {low}, {high}; give the smallest value, then the largest"
            )

    def chosen_number(self, name: str) -> int:
        """Return a field as a number that may also be ``auto``.

        Raises:
            ValueError: if it is still to be chosen.
        """
        value = getattr(self, name)
        if isinstance(value, str):
            raise ValueError(
                f"{self.key}.{name} is {value!r}, which a training replaces by a number; here, "
                "give one"
            )
        return value

    def check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        """Raise ``ValueError`` unless a text field is one of ``choices``; the nearest is named."""
        value = getattr(self, name)
        if value not in choices:
            hint = did_you_mean(str(value), choices)
            raise ValueError(f"{self.key}.{name} is {value!r}{hint}")


def _numbers(value: Any) -> Iterator[float]:
    for item in value if isinstance(value, tuple | list) else (value,):
        if isinstance(item, int | float) and not isinstance(item, bool):
            yield item


@dataclass(kw_only=True, frozen=True)
class Published(Section):
    """What the authors published for this row; shown next to what is measured, never used.

    Attributes:
        source: table of the paper, or log of the release.
        numbers: metric name -> value.
    """

    key: ClassVar[str] = "published"

    source: str = ""
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True, frozen=True)
class ModelConfig(Section):
    """The network: what every task's model section has.

    Attributes:
        checkpoint: start from these weights (anything ``rmt.load`` reads). Layers whose shape
            depends on the classes are randomly initialised if the classes differ.
        pretrained: start from weights that come with this package: null where ``auto`` chose a
            network that has them, true always, false never. The run stores their name as
            ``checkpoint``.
        num_classes: needed only for ``--dry-run`` without the data; null takes the data's.
        drop_path_rate: stochastic depth at the last block; null takes the variant's.
        freeze: names of modules, such as ``stages.0``, that are not trained. They run in evaluation
            mode, so that the statistics of their batch norms stay too.
    """

    key: ClassVar[str] = "model"
    #: The key that names the network.
    network: ClassVar[str] = "backbone"

    checkpoint: str | None = None
    pretrained: bool | None = None
    num_classes: int | None = number(None, 1)
    drop_path_rate: float | None = number(None, 0, 1, below=True)
    freeze: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrained and self.checkpoint:
            raise ValueError(
                f"model.pretrained is true and model.checkpoint is {self.checkpoint!r}: a run "
                "starts from one of them; set model.pretrained to false"
            )


@dataclass(kw_only=True, frozen=True)
class DataConfig(Section):
    """Where the images are and how they are loaded: what every task's data section has.

    Attributes:
        format: of the data set, such as ``folder`` or ``coco``; ``auto`` recognises it.
        root: folder (or file) of the data set.
        val_fraction: fraction of the training images that is held out for validation if the data
            set has no validation split; 1 evaluates all of them and trains on none.
        folds: divide the training images into this many parts of equal size (of each class, where
            images have one), to train as many runs, each validated on another part; 0 for
            ``val_fraction`` instead.
        fold: the part that this run is validated on, from 0.
        batch_size: training images per device and batch; ``auto`` takes the largest power of two
            that fits into the memory of the one device, leaves ten steps per epoch and is not above
            ``trainer.global_batch_size``. The run records the number.
        num_workers: loading processes per device; -1 uses the spare cores, at most 16.
        cache_gb: keep decoded training images in memory, up to so many GiB per device; 0 keeps
            none. Each loading process keeps a share, so one process reads the fewest again.
        repeats: show each training image this many times per epoch, augmented anew.
        max_bad_samples: unreadable samples tolerated per device; each one is named in the log.
        allow_changed: resume a run even if images were added, removed or relabelled since it began;
            its validation images stay validation images.
        loader_timeout: seconds to wait for a batch from the loading processes before the run stops
            with a message; 0 waits forever.
    """

    key: ClassVar[str] = "data"

    format: str = "auto"
    root: str = ""
    val_fraction: float = number(0.1, 0, 1)
    folds: int = number(0, 0, 1000)
    fold: int = number(0, 0)
    batch_size: int | Literal["auto"] = number(1, 1)
    num_workers: int = number(-1, -1, 256)
    cache_gb: float = number(0.0, 0)
    repeats: int = number(1, 1)
    max_bad_samples: int = number(100, 0)
    allow_changed: bool = False
    loader_timeout: int = number(600, 0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.folds == 1 or self.fold >= max(self.folds, 1):
            raise ValueError(
                f"data.fold is {self.fold} and data.folds is {self.folds}: give the number of "
                "parts, 2 or more, and which of them, from 0, is validated on; data.folds 0 is "
                "without parts"
            )

    @property
    def images_per_batch(self) -> int:
        """The batch size; raises as :meth:`chosen_number`."""
        return self.chosen_number("batch_size")


@dataclass(kw_only=True, frozen=True)
class Optimizer(Section):
    """AdamW and its parameter groups.

    Attributes:
        lr: peak learning rate at ``reference_batch_size`` images per step; scaled linearly with
            the global batch size.
        reference_batch_size: global batch size that ``lr`` is meant for; 0 uses ``lr`` as it is.
        weight_decay: of AdamW, for all parameters that ``no_decay`` does not exempt.
        no_decay: ``bias_and_norm`` exempts biases and norms (LayerScale decays, as in the
            release's classifiers), ``norms`` exempts norms only, ``nothing`` exempts none.
        betas: of AdamW.
        eps: of AdamW.
        clip_grad: largest gradient norm; 0 does not clip.
        layer_decay: factor on the learning rate per block towards the stem, to fine-tune a
            classifier; 1 is the same rate for all layers.
    """

    key: ClassVar[str] = "optimizer"

    lr: float = number(1e-3, 0, above=True)
    reference_batch_size: int = number(0, 0)
    weight_decay: float = number(0.05, 0)
    no_decay: Literal["bias_and_norm", "norms", "nothing"] = "bias_and_norm"
    betas: tuple[float, float] = number((0.9, 0.999), 0, 1, below=True)
    eps: float = number(1e-8, 0, above=True)
    clip_grad: float = number(0.0, 0)
    layer_decay: float = number(1.0, 0, 1, above=True)


@dataclass(kw_only=True, frozen=True)
class Schedule(Section):
    """Length of the run and its learning rates.

    Attributes:
        epochs: length of the run in epochs; 0 if ``steps`` is given.
        steps: length of the run in optimizer steps; 0 if ``epochs`` is given.
        name: the learning rate after the warm-up: ``cosine`` and ``poly`` fall to ``min_lr``,
            ``step`` is multiplied by ``factor`` at each of ``milestones``, ``constant`` stays.
        warmup_epochs: linear warm-up; may be a fraction.
        warmup_steps: the same in optimizer steps; the longer of the two is used.
        warmup_lr: learning rate at the first step, not scaled with the batch size.
        warmup_ratio: the same as a fraction of the peak; used where ``warmup_lr`` is 0.
        min_lr: learning rate at the end, not scaled with the batch size.
        milestones: epochs at which ``step`` lowers the rate.
        factor: what ``step`` multiplies the rate by.
        power: exponent of ``poly``.
        by_epoch: change the rate once per epoch instead of at each step.
        lag: number of epochs by which the rate follows its curve late; in the release's logs, 1.
    """

    key: ClassVar[str] = "schedule"

    epochs: int = number(0, 0)
    steps: int = number(0, 0)
    name: Literal["cosine", "poly", "step", "constant"] = "cosine"
    warmup_epochs: float = number(0.0, 0)
    warmup_steps: int = number(0, 0)
    warmup_lr: float = number(0.0, 0)
    warmup_ratio: float = number(0.0, 0, 1)
    min_lr: float = number(0.0, 0)
    milestones: tuple[int, ...] = number((), 0)
    factor: float = number(0.1, 0, 1, above=True)
    power: float = number(1.0, 0, above=True)
    by_epoch: bool = False
    lag: int = number(0, 0)

    def check_length(self) -> None:
        """Raise ``ValueError`` unless exactly one of ``epochs`` and ``steps`` is given."""
        if bool(self.epochs) == bool(self.steps):
            raise ValueError(
                f"schedule.epochs is {self.epochs} and schedule.steps is {self.steps}: exactly "
                "one of them must be positive, as the length of the run; set the other to 0"
            )


@dataclass(kw_only=True, frozen=True)
class Ema(Section):
    """Exponential moving average of the weights, kept and evaluated beside the raw ones.

    Attributes:
        decay: per step of ``reference_batch_size`` images; 0 for no average.
        reference_batch_size: the decay is raised to the power of global batch size / this; 0 uses
            the decay as it is.
        warmup: start with a smaller decay that grows, which short runs need.
    """

    key: ClassVar[str] = "ema"

    decay: float = number(0.0, 0, 1, below=True)
    reference_batch_size: int = number(0, 0)
    warmup: bool = False


@dataclass(kw_only=True, frozen=True)
class TrainerConfig(Section):
    """Devices, precision, and how often to evaluate, save and log.

    Attributes:
        devices: number of devices of this machine, or ``auto``.
        num_nodes: number of machines.
        accelerator: ``auto``, ``cpu``, ``gpu``, ...
        threads: CPU threads per process; 0 leaves it to torch. Small networks are fastest with one.
        strategy: Lightning's name: ``auto``, ``ddp``, ``fsdp2`` ...
        precision: Lightning's name: ``32-true``, ``bf16-mixed``, ``64-true``.
        accumulate_grad_batches: batches per optimizer step.
        global_batch_size: images per optimizer step over all devices. Gradients are accumulated
            over as many batches as that takes, so ``accumulate_grad_batches`` cannot be set too. 0
            for batch size × devices × ``accumulate_grad_batches``.
        compile: run the network through ``torch.compile``.
        grad_checkpointing: recompute blocks in the backward pass to save memory.
        sync_batchnorm: share batch norm statistics over all devices.
        early_stopping_patience: stop after this many evaluations without a better one; 0 never.
        early_stopping_max_lr: fraction of the peak that the learning rate must have come down to
            before evaluations count for ``early_stopping_patience``: while it is high, the best
            weights are still to come. A rate that never gets so low counts where it is lowest; 1
            counts from the end of the warm-up.
        save_every: also save the state after every so many steps; 0 only after each evaluation.
        evaluate_every: epochs between evaluations, or optimizer steps if the run's length is given
            in steps; 0 evaluates after each epoch, or ten times in a run of steps. The last step
            is always evaluated.
        log_every: steps between two logged values.
        logger: where the run is logged: ``csv``, ``tensorboard``, ``wandb`` (Weights & Biases) or
            ``mlflow``, or a list of several. The CSV file is always written: the report reads it.
    """

    key: ClassVar[str] = "trainer"

    devices: int | Literal["auto"] = number("auto", 1)
    num_nodes: int = number(1, 1)
    accelerator: str = "auto"
    threads: int = number(0, 0, 1024)
    strategy: str = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"] = (
        "32-true"
    )
    accumulate_grad_batches: int = number(1, 1)
    global_batch_size: int = number(0, 0)
    compile: bool = False
    grad_checkpointing: bool = False
    sync_batchnorm: bool = True
    early_stopping_patience: int = number(0, 0)
    early_stopping_max_lr: float = number(0.1, 0, 1)
    save_every: int = number(0, 0)
    evaluate_every: int = number(0, 0)
    log_every: int = number(20, 1)
    logger: tuple[str, ...] | str = "csv"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (self.logger,) if isinstance(self.logger, str) else self.logger:
            if name not in LOGGERS:
                raise ValueError(f"trainer.logger is {name!r}{did_you_mean(name, LOGGERS)}")
        if self.global_batch_size and self.accumulate_grad_batches != 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches is {self.accumulate_grad_batches} and "
                f"trainer.global_batch_size is {self.global_batch_size}: give only one of the two "
                "(--trainer.global_batch_size 0 or --trainer.accumulate_grad_batches 1)"
            )


@dataclass(kw_only=True, frozen=True)
class Recipe:
    """What the recipes of all tasks have; each task adds its own model, data and augmentation.

    Attributes:
        task: classification, detection or segmentation.
        title: what the recipe reproduces, in one line.
        seed: all randomness of a run is a function of seed, step and rank.
        published: the authors' numbers.
        model: the network.
        data: the data set and how it is loaded.
        optimizer: AdamW.
        schedule: length of the run and its learning rates.
        ema: moving average of the weights.
        trainer: devices, precision, checkpoints.
    """

    task: str
    title: str = ""
    seed: int = 0
    published: Published = field(default_factory=Published)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    ema: Ema = field(default_factory=Ema)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def with_network(self, name: str, start: str | None) -> Self:
        """Return this recipe with the name of its network and its start: nothing is left to choose.

        Args:
            name: of the network.
            start: the checkpoint that the run starts from, or None.
        """
        changes: dict[str, Any] = {
            self.model.network: name,
            "checkpoint": start,
            "pretrained": None,
        }
        return replace(self, model=replace(self.model, **changes))

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; it must be at least 0 and less than 2^32")
