"""An engine of exported files that takes no time: it calls the very module that was exported."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmt.deployment.engines import Engine
from rmt.modeling.graphs import Graph

#: Number in a file -> the module.
MODULES: dict[int, nn.Module] = {}
NAME = "eager"


class EagerEngine(Engine):
    name, suffix = NAME, ".eager"

    def open(self, path: Path) -> str | None:
        content = json.loads(path.read_text())
        self.module = (MODULES[content["module"]],)
        return content["metadata"]

    @torch.no_grad()
    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        outputs = self.module[0](*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)


class Noisy(nn.Module):
    """A module whose outputs are a little wrong."""

    def __init__(self, module: nn.Module, noise: float) -> None:
        super().__init__()
        self.module, self.noise = module, noise

    def forward(self, *inputs: Tensor) -> Any:
        outputs = self.module(*inputs)
        if isinstance(outputs, tuple):
            return tuple(
                own * (1 + self.noise * torch.randn(own.shape)) if own.is_floating_point() else own
                for own in outputs
            )
        return outputs + self.noise * outputs.std() * torch.randn_like(outputs)


def writer(noise: float = 0.0) -> Callable[..., None]:
    """Return a format for :data:`rmt.deployment.formats.FORMATS`."""

    def write(graph: Graph, path: Path, text: str, **options: Any) -> None:
        module = Noisy(graph.module, noise) if noise else graph.module
        MODULES[len(MODULES)] = module
        path.write_text(json.dumps({"module": len(MODULES) - 1, "metadata": text}))

    return write
