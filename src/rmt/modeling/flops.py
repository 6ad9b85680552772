"""The cost of a model: parameters and multiply-accumulates (MACs), also in the paper's unit.

There are three figures, each for one image:

* ``products``: MACs of convolutions, linear layers and the two products of attention, as counted
  by ``torch.utils.flop_counter`` (which counts two operations per MAC).
* ``macs``: these plus what fvcore adds for normalisation, 5 per element of a LayerNorm and 2 per
  element of a batch norm (about 0.5 % in all). ``gmacs_1e9`` is the same number in units of 1e9.
* ``fvcore_gmacs_1024``: ``macs`` / 1024³, the unit of the paper's "G": 2.469, 4.470, 9.699 and
  18.203 for RMT-T, S, B and L at 224². fvcore counts nothing for a fused attention call, so the
  count runs on plain products; then it equals fvcore's to the last operation.

Softmax, activations, sums, the rotation and pooling are not counted.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rmt.files import write_json
from rmt.modeling.layers import ManhattanAttention
from rmt.modeling.registry import SHIPPED_DIGESTS, create_model
from rmt.variants import OWN_VARIANTS, VARIANTS, Published

_PER_ELEMENT: dict[type[nn.Module], int] = {nn.LayerNorm: 5, nn.BatchNorm1d: 2, nn.BatchNorm2d: 2}


@dataclass(frozen=True)
class Flops:
    """The cost of one image.

    Attributes:
        params: parameters.
        products: MACs of convolutions, linear layers and attention.
        norms: operations that fvcore counts for normalisation layers.
    """

    params: int
    products: int
    norms: int

    @property
    def macs(self) -> int:
        """Products and norms, which is fvcore's count."""
        return self.products + self.norms

    @property
    def gmacs_1e9(self) -> float:
        """The count in units of 1e9."""
        return self.macs / 1e9

    @property
    def fvcore_gmacs_1024(self) -> float:
        """The count in units of 1024³, as the paper prints it."""
        return self.macs / 1024**3


class Row(TypedDict):
    """The cost of a model at 224², and the paper's numbers.

    Attributes:
        params: parameters.
        macs: fvcore's count.
        gmacs_1e9: the same in units of 1e9.
        fvcore_gmacs_1024: the same in units of 1024³.
        published_params_m: millions of parameters in the paper; None for models of this project.
        published_gmacs_fvcore_1024: the paper's "G".
        top1_published: ImageNet-1K top-1 accuracy in the paper, in percent.
        own: whether the model is one of this project, not of the paper.
        weights: names of the weights in this package, with the SHA-256 of each file.
    """

    params: int
    macs: int
    gmacs_1e9: float
    fvcore_gmacs_1024: float
    published_params_m: float | None
    published_gmacs_fvcore_1024: float | None
    top1_published: float | None
    own: bool
    weights: dict[str, str]


def count(model: nn.Module, size: int | tuple[int, int] = 224) -> Flops:
    """Count the operations of ``model`` for one image, on the meta device.

    Args:
        model: a network that takes (1, C, H, W); it is not changed.
        size: H and W of the image in pixels, or one number for both.
    """
    height, width = (size, size) if isinstance(size, int) else size
    channels: Any = getattr(model, "in_chans", 3)
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


def model_table() -> dict[str, Row]:
    """Return one row per model and, as ``NAME_tl``, one per starred model of the paper, at 224²."""
    table = {}
    for name, variant in VARIANTS.items():
        published = variant.published
        table[name] = _row(name, published)
        if published is not None and published.top1_token_labels is not None:
            starred = replace(
                published,
                params=published.params_token_labels or published.params,
                top1=published.top1_token_labels,
            )
            table[f"{name}_tl"] = _row(name, starred, token_labels=True)
    return table


def format_table(table: dict[str, Row]) -> str:
    """Return the rows of :func:`model_table` as text, published numbers in separate columns."""
    lines = [
        "                counted here, 224 x 224                    published",
        "model           parameters  MACs / 1e9  fvcore / 1024^3    params  G    top-1",
    ]
    for name, row in table.items():
        line = f"{name:14}{row['params']:>12,}{row['gmacs_1e9']:12.3f}"
        line += f"{row['fvcore_gmacs_1024']:17.3f}    "
        if row["own"]:
            line += "  (of this project, not in the paper)"
        else:
            line += f"{row['published_params_m']:>4g} M{row['published_gmacs_fvcore_1024']:>6}"
            line += f"{row['top1_published']:>7}"
        lines.append(line)
    shipped = [pair for row in table.values() for pair in row["weights"].items()]
    return "\n".join(
        [
            *lines,
            *(f"weights in this package: {name}, SHA-256 {digest}" for name, digest in shipped),
            "_tl: with token labelling (the starred rows). The paper's G is fvcore's count of",
            "multiply-accumulates divided by 1024^3; MACs / 1e9 is the same count in units of 1e9.",
        ]
    )


def write_table(folder: Path) -> None:
    """Write ``models.json`` and ``models.txt``, which ``rmt models`` shows without counting."""
    table = model_table()
    write_json(folder / "models.json", table)
    (folder / "models.txt").write_text(f"{format_table(table)}\n", encoding="utf-8")


def _row(name: str, published: Published | None, *, token_labels: bool = False) -> Row:
    flops = count(create_model(name, token_labels=token_labels, device="meta"))
    return {
        "params": flops.params,
        "macs": flops.macs,
        "gmacs_1e9": flops.gmacs_1e9,
        "fvcore_gmacs_1024": flops.fvcore_gmacs_1024,
        "published_params_m": None if published is None else published.params,
        "published_gmacs_fvcore_1024": None if published is None else published.gflops,
        "top1_published": None if published is None else published.top1,
        "own": name in OWN_VARIANTS,
        "weights": {k: v for k, v in SHIPPED_DIGESTS.items() if k.partition(".")[0] == name},
    }


if __name__ == "__main__":
    write_table(Path(__file__).parent)
