"""Segmenters as graphs, and how their exports compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rmt.modeling.graphs import Graph
from rmt.segmentation.inference import label_map
from rmt.segmentation.metrics import SegmentationMetrics
from rmt.segmentation.predict import label_names, options_of
from rmt.segmentation.segmenter import Segmenter


class _AtStride(nn.Module):
    """Images to logits at the stride of the head."""

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images, full_size=False)


def graphs(model: Segmenter, size: tuple[int, int]) -> dict[str, Graph]:
    """Return the segmenter as one graph: images (B, C, H, W) to logits (B, K, ⌈H/4⌉, ⌈W/4⌉)."""
    return {"model": Graph(module=_AtStride(model), inputs=("images",), outputs=("logits",))}


def size_of(model: Segmenter) -> tuple[int, int]:
    """Return the size (h, w) of the model's windows, or a square of the images' short side."""
    options = options_of(model)
    side = options.window or options.min_size or 512
    return side, side


def transforms(model: Segmenter) -> dict[str, Any]:
    """Return what turns an image into the network's input."""
    options, (mean, std) = options_of(model), model.channel_statistics
    return {
        "mean": list(mean),
        "std": list(std),
        "interpolation": "bilinear",
        "min_size": options.min_size,
        "max_size": options.max_size,
    }


@torch.no_grad()
def agreement(
    model: Segmenter, exported: Segmenter, images: Sequence[Image.Image]
) -> tuple[str, float]:
    """Return the mIoU of the export's label maps, with those of the model as the truth."""
    options = options_of(model)
    metrics = SegmentationMetrics(label_names(model), options, per_class=False)
    for image in images:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        metrics.update(exported, [(pixels, label_map(model, pixels, options))])
    return "mIoU agreement", metrics.compute()["mIoU"]
