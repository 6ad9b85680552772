"""What a model costs: parameters, multiply-accumulates, and the paper's unit for them.

Three figures are told apart, all for one image:

* ``products``: multiply-accumulates of convolutions, linear layers and the two products of
  attention, counted by ``torch.utils.flop_counter`` (which counts two operations for each).
* ``macs``: the products and what fvcore adds for normalisation, 5 an element of a LayerNorm and 2
  an element of a batch norm (0.5 % more): the whole count in plain units, 1e9 to the giga.
* ``fvcore_gmacs_1024``: ``macs`` / 1024³, the unit of the paper's "G": 2.469, 4.470, 9.699 and
  18.203 for RMT-T, S, B and L at 224². fvcore itself sees nothing in a fused attention call, so
  the count runs on the plain products; it is equal to fvcore's to the last operation.

Softmax, activations, sums, the rotation and pooling are in none of them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rmt.modeling.layers import ManhattanAttention
from rmt.modeling.registry import create_model
from rmt.variants import OWN_VARIANTS, VARIANTS

_PER_ELEMENT: dict[type[nn.Module], int] = {nn.LayerNorm: 5, nn.BatchNorm1d: 2, nn.BatchNorm2d: 2}


@dataclass(frozen=True)
class Flops:
    """The cost of one image.

    Attributes:
        params: parameters.
        products: multiply-accumulates of convolutions, linear layers and attention.
        norms: operations that fvcore counts for normalisation.
    """

    params: int
    products: int
    norms: int

    @property
    def macs(self) -> int:
        """Products and norms: fvcore's count."""
        return self.products + self.norms

    @property
    def gmacs_1e9(self) -> float:
        """The count in units of 1e9."""
        return self.macs / 1e9

    @property
    def fvcore_gmacs_1024(self) -> float:
        """The count in units of 1024³, as the paper prints it."""
        return self.macs / 1024**3


def count(model: nn.Module, size: int | tuple[int, int] = 224) -> Flops:
    """Count what ``model`` does for one image, without running it: on the meta device.

    Args:
        model: a network that takes (1, C, H, W); it is left as it is.
        size: H and W of the image, or one number for both.
    """
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(model, "in_chans", 3)
    model = copy.deepcopy(model).to("meta").eval()
    norms = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        nonlocal norms
        norms += _PER_ELEMENT[type(module)] * inputs[0].numel()

    for module in model.modules():
        if isinstance(module, ManhattanAttention):
            module.backend = "plain"
        if type(module) in _PER_ELEMENT:
            module.register_forward_hook(add)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, channels, height, width, device="meta"))
    params = sum(p.numel() for p in model.parameters())
    return Flops(params, products=counter.get_total_flops() // 2, norms=norms)


def model_table() -> dict[str, dict[str, Any]]:
    """Return a row for every model and, as ``NAME_tl``, for every starred form, at 224².

    Counted here: ``params``, ``macs`` (int), ``gmacs_1e9``, ``fvcore_gmacs_1024``. Printed in the
    paper, None for our own: ``published_params_m``, ``published_gmacs_fvcore_1024``,
    ``top1_published``. ``own`` tells the two kinds of model apart.
    """
    table = {}
    for name, variant in VARIANTS.items():
        published = variant.published
        table[name] = _row(name, token_labels=False)
        if published is None:
            continue
        table[name] |= {
            "published_params_m": published.params,
            "published_gmacs_fvcore_1024": published.gflops,
            "top1_published": published.top1,
        }
        if published.top1_token_labels is not None:
            table[f"{name}_tl"] = _row(name, token_labels=True) | {
                "published_params_m": published.params_token_labels,
                "published_gmacs_fvcore_1024": published.gflops,
                "top1_published": published.top1_token_labels,
            }
    return table


def format_table(table: dict[str, dict[str, Any]]) -> str:
    """Return the rows of :func:`model_table` as text, published figures apart from counted ones."""
    lines = [
        "                counted here, 224 x 224                    published",
        "model           parameters  MACs / 1e9  fvcore / 1024^3    params  G    top-1",
    ]
    for name, row in table.items():
        line = f"{name:14}{row['params']:>12,}{row['gmacs_1e9']:12.3f}"
        line += f"{row['fvcore_gmacs_1024']:17.3f}    "
        if row["own"]:
            line += "  (of this project, not of the paper)"
        else:
            line += f"{row['published_params_m']:>4g} M{row['published_gmacs_fvcore_1024']:>6}"
            line += f"{row['top1_published']:>7}"
        lines.append(line)
    return "\n".join(
        [
            *lines,
            "_tl: with token labelling (the starred rows). The paper's G is fvcore's count of",
            "multiply-accumulates divided by 1024^3; the middle column is the same in plain 1e9.",
        ]
    )


def _row(name: str, *, token_labels: bool) -> dict[str, Any]:
    flops = count(create_model(name, token_labels=token_labels, device="meta"))
    return {
        "params": flops.params,
        "macs": flops.macs,
        "gmacs_1e9": flops.gmacs_1e9,
        "fvcore_gmacs_1024": flops.fvcore_gmacs_1024,
        "published_params_m": None,
        "published_gmacs_fvcore_1024": None,
        "top1_published": None,
        "own": name in OWN_VARIANTS,
    }
