"""Initialisation of the layers of necks and heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn


def init_layers(layers: Iterable[nn.Module], init: Callable[[Tensor], Any]) -> None:
    """Initialise the weight of each layer by ``init``, a function of ``nn.init``; biases are 0."""
    for layer in layers:
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear), layer
        init(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
