"""A detector's prediction of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from rmt.detection.detector import SCORE_THRESHOLD, Detections, Detector
from rmt.detection.rle import to_mask, to_rle
from rmt.detection.tiles import detect_in_tiles

_SMALLEST_TILE = 32
#: Objects that score less are not drawn.
SHOWN_SCORE = 0.3


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of prediction.

    Attributes:
        score: detections must score above it, 0 to 1.
        tile: side of the tiles that an image is cut into, in pixels; 0 takes the whole image.
        tile_overlap: of neighbouring tiles, as a share of the side.
        tile_batch_size: tiles that pass the network together.
    """

    score: float = SCORE_THRESHOLD
    tile: int = 0
    tile_overlap: float = 0.2
    tile_batch_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise ValueError(f"score is {self.score}; it must be between 0 and 1")
        if self.tile and self.tile < _SMALLEST_TILE:
            raise ValueError(
                f"tile is {self.tile}; it must be at least {_SMALLEST_TILE} pixels, or 0 for the "
                "whole image"
            )
        if not 0 <= self.tile_overlap <= 0.9:
            raise ValueError(
                f"tile_overlap is {self.tile_overlap}; it must be a share, from 0 to 0.9"
            )
        if self.tile_batch_size < 1:
            raise ValueError(f"tile_batch_size is {self.tile_batch_size}; it must be at least 1")


class BackboneEmbedder:
    """From RGB images to ``{"embedding": (C,) float32}``, the mean of the backbone's last map.

    Args:
        model: in eval mode.
        options: of prediction.
    """

    def __init__(self, model: Detector, options: Options) -> None:
        self.model, self.options = model, options

    def prepare(self, image: Image.Image) -> Tensor:
        """Return the image as bytes (3, h, w)."""
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def shape(self, pixels: Tensor) -> tuple[int, ...]:
        """Return the size of the canvas that the image is resized and padded to."""
        return self.model.transform.canvas_of(pixels)

    def images(self, batch: Sequence[Tensor]) -> list[Tensor]:
        """Return prepared images as the model takes them, on its device."""
        device = next(self.model.parameters()).device
        return [pixels.to(device).float() / 255 for pixels in batch]

    def predict(self, batch: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Return the features of each image, padding left out."""
        padded = self.model.batch(self.images(batch))
        maps = self.model.backbone(padded.pixels)[-1].float()
        stride = padded.pixels.shape[-1] // maps.shape[-1]
        cells = (padded.sizes / stride).ceil().long().tolist()
        return [
            {"embedding": own[:, :height, :width].mean(dim=(1, 2)).cpu().numpy()}
            for own, (height, width) in zip(maps, cells, strict=True)
        ]


class ObjectPredictor(BackboneEmbedder):
    """From RGB images to their detections, best first.

    The result is ``{"size": [h, w], "detections": [{"box": [x0, y0, x1, y1], "score", "label",
    "name", "mask"}, ...]}`` in the image's pixels. Only models with masks give ``mask``, a COCO
    run-length encoding.

    Args:
        model: in eval mode.
        options: minimum score, and tiles.
    """

    def __init__(self, model: Detector, options: Options) -> None:
        super().__init__(model, options)
        self.names = label_names(model)

    def predict(self, batch: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Return the detections of each image."""
        found = self._in_tiles(batch) if self.options.tile else self._whole(batch)
        return [
            {"size": [*pixels.shape[1:]], "detections": self._entries(*own)}
            for pixels, own in zip(batch, found, strict=True)
        ]

    def _whole(self, batch: Sequence[Tensor]) -> Iterator[tuple[Detections, list | None]]:
        for found in self.model(self.images(batch), score_threshold=self.options.score):
            masks = found.get("masks")
            yield found, None if masks is None else to_rle(masks.cpu().numpy())

    def _in_tiles(self, batch: Sequence[Tensor]) -> Iterator[tuple[Detections, list | None]]:
        options = self.options
        for image in batch:
            yield detect_in_tiles(
                self.model,
                image,
                tile=options.tile,
                overlap=options.tile_overlap,
                batch_size=options.tile_batch_size,
                score_threshold=options.score,
            )

    def _entries(self, found: Detections, masks: list | None) -> list[dict[str, Any]]:
        values = (found[name].tolist() for name in ("boxes", "scores", "labels"))
        detections: list[dict[str, Any]] = [
            {"box": box, "score": score, "label": label, "name": self.names[label]}
            for box, score, label in zip(*values, strict=True)
        ]
        if masks is not None:
            for entry, code in zip(detections, masks, strict=True):
                entry["mask"] = code
        return detections


def label_names(model: Detector) -> list[str]:
    """Return class names: the weights' own, or numbers."""
    return list(model.info.get("label_names") or map(str, range(model.num_classes)))


def pixels(model: Detector, image: Image.Image) -> tuple[Tensor, Image.Image]:
    """Return an image as the model sees it: (3, H, W) normalised, and the same as a PIL image."""
    batch = model.batch([torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255])
    height, width = batch.sizes[0].tolist()
    seen = batch.pixels[0, :, :height, :width]
    low, high = seen.amin(), seen.amax()
    return batch.pixels[0], to_pil_image((seen - low) / (high - low).clamp(min=1e-6))


def draw_detections(
    image: Image.Image, detections: list[dict[str, Any]], *, min_score: float = SHOWN_SCORE
) -> Image.Image:
    """Return the image with boxes, masks, names and scores of all objects from ``min_score`` on."""
    shown = [entry for entry in detections if entry["score"] >= min_score]
    canvas = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if not shown:
        return image.copy()
    colours: list[str | tuple[int, int, int]] = [colour_of(entry["label"]) for entry in shown]
    if all("mask" in entry for entry in shown):
        masks = np.stack([to_mask(own["mask"], image.height, image.width) for own in shown])
        # Where masks overlap, the best one is drawn; torchvision would leave such pixels black.
        best = torch.from_numpy(masks.astype(bool) & (masks.cumsum(axis=0) == 1))
        canvas = draw_segmentation_masks(canvas, best, alpha=0.5, colors=colours)
    boxes = torch.tensor([entry["box"] for entry in shown]).round()
    boxes[:, 2:] = boxes[:, 2:].maximum(boxes[:, :2])
    labels = [f"{entry['name']} {100 * entry['score']:.0f}" for entry in shown]
    canvas = draw_bounding_boxes(canvas, boxes, labels, colors=colours, width=2)
    return Image.fromarray(canvas.permute(1, 2, 0).numpy())


def draw(result: dict[str, Any], image: Image.Image) -> Image.Image:
    """Return the image with the objects of a result."""
    return draw_detections(image, result["detections"])


def colour_of(label: int) -> tuple[int, int, int]:
    """Return a bright colour that differs clearly from those of neighbouring labels."""
    hue = int(label * 0.618034 % 1 * 255)
    red, green, blue = Image.new("HSV", (1, 1), (hue, 200, 255)).convert("RGB").tobytes()
    return red, green, blue


def save_prediction(
    result: dict[str, Any], image: Image.Image, out: Path, stem: str
) -> dict[str, Any]:
    """Draw the objects on the image, to folder ``out``; return the JSON record."""
    draw(result, image).save(out / f"{stem}.png")
    return result
