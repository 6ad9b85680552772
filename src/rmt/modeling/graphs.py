"""Parts of a model that are exported as graphs of tensors, and what stands in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Never

import torch
from torch import Tensor, nn

Outputs = tuple[Tensor, ...]
#: Largest difference between a graph and its export, as a share of the largest output.
TOLERANCE = 1e-3


def relative_difference(found: Outputs, expected: Outputs) -> float:
    """Return the largest difference of any output, as a share of that output's largest value."""
    shares = [0.0]
    for ours, theirs in zip(found, expected, strict=True):
        if ours.shape != theirs.shape:
            return float("inf")
        if theirs.numel():
            largest = theirs.abs().amax().clamp(min=1e-6)
            shares.append(((ours - theirs).abs().amax() / largest).nan_to_num(torch.inf).item())
    return max(shares)


def images_alone(images: Tensor) -> Outputs:
    """Return the inputs of a graph that takes images and nothing else."""
    return (images,)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A part of a model that is exported as one graph.

    Attributes:
        module: from the inputs to a tensor or a tuple of tensors; in eval mode.
        inputs: names of the inputs.
        outputs: names of the outputs.
        examples: normalised images (B, C, H, W) -> what the graph is given for them.
        regions: the first axis counts regions, of which each image has its own number, instead of
            images.
        difference: outputs of the export and of the module -> how far they are apart.
        tolerance: largest difference of an export that is right.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    examples: Callable[[Tensor], Outputs] = images_alone
    regions: bool = False
    difference: Callable[[Outputs, Outputs], float] = relative_difference
    tolerance: float = TOLERANCE


@dataclass(frozen=True, kw_only=True)
class Exports:
    """The exported graphs of a model, as they were opened again.

    Attributes:
        engines: name of a graph -> its export, which maps tensors to a tuple of tensors.
        size: height and width of the images that they were exported for.
        any_size: whether they take other sizes too.
    """

    engines: dict[str, nn.Module]
    size: tuple[int, int]
    any_size: bool = False

    def __getitem__(self, name: str) -> nn.Module:
        """Return the engine of a graph.

        Raises:
            ValueError: if there is none.
        """
        if name not in self.engines:
            raise ValueError(f"the export has no graph {name!r}, only {', '.join(self.engines)}")
        return self.engines[name]


class Exported:
    """A model whose networks are exported graphs; they run on the CPU."""


class Absent(nn.Module):
    """In place of a network whose parameters are in an exported file.

    It has the dtype and device of the engines' inputs, and takes the arguments of a backbone.
    """

    channels = (1, 1, 1, 1)
    norms = ()

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__()
        # Also while a description is tried on the meta device.
        zeros = torch.zeros(1, device="cpu")
        self.dtype_and_device = nn.Parameter(zeros, requires_grad=False)

    def forward(self, *inputs: object, **options: object) -> Never:
        """Raise :meth:`error`."""
        raise self.error()

    @staticmethod
    def error() -> ValueError:
        """Return what to say to who asks for features, which are inside the exported graph."""
        return ValueError(
            "an exported file gives predictions, not features: name the checkpoint that it was "
            "exported from"
        )
