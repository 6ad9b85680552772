"""First values of a head's layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn


def start(layers: Iterable[nn.Module], draw: Callable[[Tensor], Any]) -> None:
    """Fill each layer's weight with ``draw``, a function of ``nn.init``, and its bias with 0."""
    for layer in layers:
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear), layer
        draw(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
