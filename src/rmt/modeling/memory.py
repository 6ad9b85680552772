"""Memory of a training step, estimated on the meta device, without running it."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor, nn, zeros
from torch.autograd.graph import saved_tensors_hooks

from rmt.modeling.layers import Block
from rmt.modeling.pretrained import Pretrained
from rmt.ops import MapTables

_GIB = 2**30


def training_memory(
    model: Pretrained,
    measured: nn.Module,
    size: tuple[int, int],
    *,
    batch_size: int,
    ema: bool,
    grad_checkpointing: bool,
    bytes_per_activation: int,
) -> dict[str, float]:
    """Estimate the memory of a training step on each device, in GiB.

    Weights with gradients, AdamW's two moments and the EMA are four bytes per number. Activations
    are those that autograd would keep for one image (recorded by its hooks while ``measured`` runs
    on the meta device), times the batch size; with gradient checkpointing, the inputs of blocks
    instead of what is inside them. Sharding over devices, the workspace of kernels and
    fragmentation are left out.

    Args:
        model: the network to train.
        measured: the part of it whose activations are counted.
        size: (h, w) of an image.
        batch_size: images per device.
        ema: whether a moving average of the weights is kept.
        grad_checkpointing: whether blocks are recomputed in the backward pass.
        bytes_per_activation: 2 in half, 4 in single precision.

    Returns:
        ``weights``, ``gradients``, ``optimizer``, ``ema``, ``activations`` and their ``total``.
    """
    numbers = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if grad_checkpointing:
        model.set_grad_checkpointing()
    kept = _activations(measured, size, inputs_of_blocks=grad_checkpointing)
    parts = {
        "weights": 4 * numbers,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "ema": 4 * numbers if ema else 0,
        "activations": kept * bytes_per_activation * batch_size,
    }
    parts["total"] = sum(parts.values())
    return {name: round(value / _GIB, 3) for name, value in parts.items()}


def available_memory() -> int:
    """Return the bytes of main memory that this process can still take.

    On Linux, what is free or can be freed, within the limit of its control group (a container, a
    job of SLURM); elsewhere half of the machine's memory.
    """
    limits = []
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = next(line for line in file if line.startswith("MemAvailable"))
        limits.append(1024 * int(found.split()[1]))
        group = Path("/sys/fs/cgroup")
        most, now = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        if most.strip() != "max":
            limits.append(int(most) - int(now))
    except (OSError, StopIteration, ValueError):
        pass  # another system, or no limit
    return min(limits, default=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)


def _activations(model: nn.Module, size: tuple[int, int], *, inputs_of_blocks: bool) -> int:
    """Return how many numbers autograd keeps for one image."""
    owned = {id(p) for p in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # an address identifies a storage only while it exists
    inputs = 0

    def keep(tensor: Tensor) -> Tensor:
        if id(tensor) not in owned and tensor.is_floating_point():
            # A tensor that two operations keep exists once.
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes() // tensor.element_size()
            alive.append(tensor)
        return tensor

    def count_input(block: nn.Module, args: tuple[Tensor, MapTables]) -> None:
        nonlocal inputs
        inputs += args[0].numel()

    for module in model.modules() if inputs_of_blocks else ():
        if isinstance(module, Block):
            module.register_forward_pre_hook(count_input)
    model.train()
    # Two images, because batch norm in training refuses a single one with a map of one token.
    images = zeros(2, 3, *size, device=next(model.parameters()).device)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images)
    return (sum(kept.values()) + inputs) // 2
