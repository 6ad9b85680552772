"""A segmenter's prediction of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rmt import recipes
from rmt.segmentation.classes import ADE20K, colours
from rmt.segmentation.inference import label_maps, normalise, resize_photo
from rmt.segmentation.overlay import draw_overlay, overlay, save_labels
from rmt.segmentation.recipe import Inference, SegmentationRecipe
from rmt.segmentation.segmenter import Segmenter


class BackboneEmbedder:
    """From RGB images to ``{"embedding": (C,) float32}``, the mean of the backbone's last map.

    Args:
        model: in eval mode.
        options: size; the image is seen at once, at one scale.
    """

    def __init__(self, model: Segmenter, options: Inference) -> None:
        self.model, self.options = model, options

    def prepare(self, image: Image.Image) -> Tensor:
        """Return the image as bytes (3, h, w)."""
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def shape(self, pixels: Tensor) -> tuple[int, ...]:
        """Return the size of the image."""
        return tuple(pixels.shape)

    def predict(self, batch: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Return the features of each image."""
        weight = next(self.model.parameters())
        images = resize_photo(torch.stack([*batch]), self.options).to(weight.device)
        x = normalise(images, *self.model.channel_statistics).to(weight.dtype)
        features = self.model.backbone(x)[-1].float().mean(dim=(2, 3)).cpu().numpy()
        return [{"embedding": own} for own in features]


class LabelMapPredictor(BackboneEmbedder):
    """From RGB images to their label maps and the area of each class.

    The result is ``{"size": [h, w], "labels": (h, w) uint8, "classes": {name: {"label",
    "pixels", "share", "colour"}}}``, the largest class first, without classes that do not occur.

    Args:
        model: in eval mode.
        options: size, windows, scales and flip.
    """

    def __init__(self, model: Segmenter, options: Inference) -> None:
        super().__init__(model, options)
        self.names, self.shades = label_names(model), palette(model)

    def predict(self, batch: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Return the label map of each image, and what it holds."""
        maps = label_maps(self.model, torch.stack([*batch]), self.options).cpu().numpy()
        return [self._described(labels) for labels in maps]

    def _described(self, labels: np.ndarray) -> dict[str, Any]:
        present, counts = np.unique(labels, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {
            "size": list(labels.shape),
            "labels": labels,
            "classes": {
                self.names[label]: {
                    "label": int(label),
                    "pixels": int(count),
                    "share": round(float(count / labels.size), 6),
                    "colour": self.shades[label].tolist(),
                }
                for label, count in zip(present[order], counts[order], strict=True)
            },
        }


def pixels(model: Segmenter, image: Image.Image) -> tuple[Tensor, Image.Image]:
    """Return an image as the model sees it: (3, H, W) normalised, and the same as a PIL image."""
    bytes_ = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    bytes_ = resize_photo(bytes_, options_of(model))
    shown = Image.fromarray(bytes_.permute(1, 2, 0).numpy())
    return normalise(bytes_, *model.channel_statistics), shown


def options_of(model: Segmenter) -> Inference:
    """Return how the weights were evaluated.

    Raises:
        ValueError: if the recipe in their file has an impossible value.
    """
    kept = model.info.get("recipe", {}).get("inference", {})
    content = {"task": model.task, "inference": kept}
    return recipes.resolve(SegmentationRecipe, content).inference


def label_names(model: Segmenter) -> list[str]:
    """Return class names: the weights' own, ADE20K's for 150 classes, else numbers.

    A name that several classes have is followed by the class's number.
    """
    if names := model.info.get("label_names"):
        count = Counter(names)
        return [name if count[name] == 1 else f"{name} ({i})" for i, name in enumerate(names)]
    return list(ADE20K) if model.num_classes == 150 else [str(i) for i in range(model.num_classes)]


def palette(model: Segmenter) -> np.ndarray:
    """Return a colour (K, 3) for each class: the weights' own, or distinct ones."""
    own = model.info.get("palette")
    return np.array(own, dtype=np.uint8) if own else colours(model.num_classes)


def record(result: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON record of a result whose label map is not written."""
    return {"size": result["size"], "labels_png": None, "classes": result["classes"]}


def draw(result: dict[str, Any], image: Image.Image) -> Image.Image:
    """Return the image, each pixel tinted by its class."""
    return overlay(image, result["labels"], palette=_present(result)[1])


def save_prediction(
    result: dict[str, Any], image: Image.Image, out: Path, stem: str
) -> dict[str, Any]:
    """Write label map and overlay to folder ``out``; return the JSON record."""
    names, shades = _present(result)
    saved = save_labels(result["labels"], out / f"{stem}_labels.png", shades)
    draw_overlay(image, result["labels"], out / f"{stem}.png", names=names, palette=shades)
    return record(result) | {"labels_png": str(saved)}


def _present(result: dict[str, Any]) -> tuple[list[str], np.ndarray]:
    """Return names, and colours (n, 3), up to the last label that occurs."""
    found = result["classes"]
    size = 1 + max(entry["label"] for entry in found.values())
    names, shades = [""] * size, np.zeros((size, 3), dtype=np.uint8)
    for name, entry in found.items():
        names[entry["label"]], shades[entry["label"]] = name, entry["colour"]
    return names, shades
