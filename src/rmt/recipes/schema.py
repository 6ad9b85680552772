"""The parts of a recipe that every task shares: optimizer, schedule, weight average, run.

Plain records, read by :mod:`rmt.training.module` and :mod:`rmt.training.fit`; no torch here. A recipe file states
only what differs from these defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def at_least(least: int, **values: float) -> None:
    """Raise ``ValueError`` for the first value below ``least``; its key has ``__`` for a dot."""
    for key, value in values.items():
        if value < least:
            raise ValueError(f"{key.replace('__', '.')} is {value}; it must be at least {least}")


@dataclass(kw_only=True)
class Published:
    """What the authors printed for this row; shown next to what is measured, never used.

    Attributes:
        source: table of the paper, or log of the release.
        numbers: metric name -> value.
    """

    source: str = ""
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class Optimizer:
    """AdamW and its parameter groups.

    Attributes:
        lr: peak learning rate for ``reference_batch_size`` images a step; scaled linearly with the
            global batch (devices x nodes x accumulation x batch per device).
        reference_batch_size: global batch that ``lr`` belongs to; 0 takes ``lr`` as it is.
        weight_decay: of AdamW, on all that ``no_decay`` does not spare.
        no_decay: ``bias_and_norm`` spares biases and norms (LayerScale decays, as in the release's
            classifiers), ``norms`` spares these alone, ``nothing`` lets all weights decay.
        betas: of AdamW.
        eps: of AdamW.
        clip_grad: largest gradient norm; 0 does not clip.
        layer_decay: factor per block towards the stem for fine-tuning a classifier; 1 treats all
            alike.
    """

    lr: float = 1e-3
    reference_batch_size: int = 0
    weight_decay: float = 0.05
    no_decay: Literal["bias_and_norm", "norms", "nothing"] = "bias_and_norm"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip_grad: float = 0.0
    layer_decay: float = 1.0


@dataclass(kw_only=True)
class Schedule:
    """Learning rate over the run.

    Attributes:
        epochs: length of the run in passes over the data; 0 where ``steps`` counts.
        steps: length in optimizer steps; 0 where ``epochs`` counts.
        name: after the warm-up: ``cosine`` and ``poly`` to ``min_lr``, ``step`` by ``factor`` at
            each of ``milestones`` (epochs), or ``constant``.
        warmup_epochs: linear warm-up; may be a fraction.
        warmup_steps: the same in optimizer steps; the longer one counts.
        warmup_lr: learning rate at the very start, not scaled with the batch.
        warmup_ratio: the same as a share of the peak; used where ``warmup_lr`` is 0.
        min_lr: learning rate at the end, not scaled with the batch.
        milestones: epochs at which ``step`` shrinks the rate.
        factor: by how much.
        power: exponent of ``poly``.
        by_epoch: the rate changes once an epoch instead of each step.
        lag: epochs by which the rate trails its curve; the release's logs trail by one.
    """

    epochs: int = 0
    steps: int = 0
    name: Literal["cosine", "poly", "step", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    warmup_steps: int = 0
    warmup_lr: float = 0.0
    warmup_ratio: float = 0.0
    min_lr: float = 0.0
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    power: float = 1.0
    by_epoch: bool = False
    lag: int = 0

    def __post_init__(self) -> None:
        at_least(0, schedule__epochs=self.epochs, schedule__steps=self.steps)


@dataclass(kw_only=True)
class Ema:
    """Exponential moving average of the weights, kept and evaluated beside the raw ones.

    Attributes:
        decay: per step at ``reference_batch_size`` images; 0 keeps no average.
        reference_batch_size: the decay is raised to (global batch / this); 0 takes it as it is.
        warmup: start with a short memory that grows; what a short run needs.
    """

    decay: float = 0.0
    reference_batch_size: int = 0
    warmup: bool = False


@dataclass(kw_only=True)
class Run:
    """Where and how the loop runs; everything here leaves the result's definition alone.

    Attributes:
        devices: number of devices of this machine, or ``auto``.
        num_nodes: machines.
        accelerator: ``auto``, ``cpu``, ``gpu``, ...
        threads: CPU threads a process; 0 leaves torch's choice. Networks of small maps are fastest
            with one.
        strategy: Lightning's name: ``auto``, ``ddp``, ``fsdp2`` ...
        precision: Lightning's name: ``32-true``, ``bf16-mixed``, ``64-true``.
        accumulate_grad_batches: batches a step.
        global_batch_size: images a step over all devices; batches are accumulated up to it, on however
            few devices, and ``accumulate_grad_batches`` is not used. 0 leaves it to the other numbers.
        compile: run the network through ``torch.compile``.
        grad_checkpointing: recompute blocks in the backward pass to save memory.
        sync_batchnorm: one batch norm over all devices.
        early_stopping_patience: stop after so many evaluations without a better one; 0 never.
        save_every: also keep a checkpoint every so many steps; 0 at each evaluation only.
        evaluate_every: epochs between evaluations (steps in a run counted in steps); 0 means
            each epoch, or ten times a run counted in steps. The last step is always judged.
        log_every: steps between logged values.
    """

    devices: int | Literal["auto"] = "auto"
    num_nodes: int = 1
    accelerator: str = "auto"
    threads: int = 0
    strategy: str = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"] = (
        "32-true"
    )
    accumulate_grad_batches: int = 1
    global_batch_size: int = 0
    compile: bool = False
    grad_checkpointing: bool = False
    sync_batchnorm: bool = True
    early_stopping_patience: int = 0
    save_every: int = 0
    evaluate_every: int = 0
    log_every: int = 20

    def __post_init__(self) -> None:
        at_least(
            1,
            trainer__num_nodes=self.num_nodes,
            trainer__accumulate_grad_batches=self.accumulate_grad_batches,
        )
        at_least(0, trainer__threads=self.threads, trainer__global_batch=self.global_batch_size)
        if isinstance(self.devices, int):
            at_least(1, trainer__devices=self.devices)


@dataclass(kw_only=True)
class Recipe:
    """What every task's recipe has; a task adds its model, data and losses.

    Attributes:
        task: classification, detection or segmentation.
        title: one line that says what this reproduces.
        seed: all randomness of a run is a function of it, the step and the rank.
        published: the authors' numbers.
        model: the task's own record.
        data: likewise.
    """

    task: str
    title: str = ""
    seed: int = 0
    published: Published = field(default_factory=Published)
    model: Any = None
    data: Any = None
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    ema: Ema = field(default_factory=Ema)
    trainer: Run = field(default_factory=Run)
