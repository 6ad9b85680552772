"""RMT in Ultralytics: as the backbone of YOLO and RT-DETR, and MaSA as a block of any YOLO.

Ultralytics is under the AGPL-3.0 and not a dependency of rmt; `pip install ultralytics` first. Its
YAML files name modules, which it looks up in `ultralytics.nn.tasks`: `register()` puts ours there.

    python examples/ultralytics_yolo.py examples/ultralytics/rmt_yolo.yaml --data data.yaml
"""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import Tensor, nn
from ultralytics import RTDETR, YOLO
from ultralytics.nn import tasks

import rmt


class RMTBackbone(nn.Module):
    """The maps of an RMT; `Index` picks one of them in the YAML.

    Args:
        name: a variant.
        weights: a file or run folder to start from, or empty.
    """

    def __init__(self, name: str, weights: str = "") -> None:
        super().__init__()
        model = rmt.load(weights) if weights else rmt.create_model(name)
        model.prune_intermediate_layers(3)
        self.body = model

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> four maps (B, C, H, W) of stride 4, 8, 16 and 32."""
        return self.body.forward_intermediates(x, intermediates_only=True)


class MaSA(nn.Module):
    """Manhattan self-attention with its norm and residual sum, for maps (B, C, H, W).

    Args:
        dim: C, the channels of the layer before it.
        heads: `dim / heads` must be even.
        decomposed: along rows and columns, or over the whole map.
    """

    def __init__(self, dim: int, heads: int, decomposed: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attn = rmt.ManhattanAttention(dim, heads, decomposed)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.attn(self.norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def register() -> None:
    """Let Ultralytics' YAML files and checkpoints name these modules."""
    for module in (RMTBackbone, MaSA):
        setattr(tasks, module.__name__, module)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="YAML file of the architecture")
    parser.add_argument("--data", required=True, help="data.yaml in Ultralytics' layout")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default=None)
    parser.add_argument("--project", default="runs/ultralytics", help="folder of the results")
    args = vars(parser.parse_args())
    path = args.pop("model")
    register()
    model = (RTDETR if "rtdetr" in path.name else YOLO)(path)
    model.train(**args)
    print(model.export(format="torchscript", imgsz=args["imgsz"]))  # its ONNX exporter crashes


if __name__ == "__main__":
    main()
