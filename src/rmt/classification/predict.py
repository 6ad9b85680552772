"""A classifier's prediction of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image, ImageDraw
from timm.data import create_transform, resolve_data_config
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from rmt.classification.models import Classifier
from rmt.modeling.rmt import RMT


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of prediction.

    Attributes:
        top: most classes to list, the most probable first.
        score: classes with a lower one are not listed.
    """

    top: int = 5
    score: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise ValueError(f"score is {self.score}; it must be at least 0 and at most 1")
        if self.top < 1:
            raise ValueError(f"top is {self.top}; it must be at least 1")


def default_options(model: Classifier) -> Options:
    """Return the options for a model: of several labels, those that are more likely than not."""
    if model.info.get("multi_label"):
        return Options(top=max(1, model.num_classes), score=0.5)
    return Options()


class ClassEmbedder:
    """From RGB images to ``{"embedding": (C,) float32}``, the features that the classes come from.

    Args:
        model: in eval mode; its ``pretrained_cfg`` says how to resize and normalise.
        options: of prediction.

    Raises:
        ValueError: if the model returns unpooled logits.
    """

    def __init__(self, model: Classifier, options: Options) -> None:
        if isinstance(model, RMT) and not model.head.global_pool:
            raise ValueError(
                "this model returns the logits of each position (global_pool=''); prediction needs "
                "pooled ones: create the model with global_pool='avg'"
            )
        self.model, self.options = model, options
        self.transform = eval_transform(model)

    def prepare(self, image: Image.Image) -> Tensor:
        """Return the image resized and normalised, (C, H, W)."""
        return self.transform(image if self.model.in_chans == 3 else image.convert("L"))

    def shape(self, pixels: Tensor) -> tuple[int, ...]:
        """Return the shape of the prepared image."""
        return tuple(pixels.shape)

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        """Return prepared images as the model takes them, (B, C, H, W)."""
        return torch.stack([*images]).to(next(self.model.parameters()))

    def predict(self, batch: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Return the features of each image."""
        maps = self.model.forward_features(self.batch(batch))
        features = self.model.forward_head(maps, pre_logits=True).float().cpu().numpy()
        return [{"embedding": own} for own in features]


class ClassPredictor(ClassEmbedder):
    """From RGB images to ``{"top": [{"label", "name", "score"}, ...]}``.

    The scores of a model of several labels are a probability of each class by itself.

    Args:
        model: in eval mode; its ``pretrained_cfg`` says how to resize and normalise.
        options: which classes to list.

    Raises:
        ValueError: if the model has no classes, or returns unpooled logits.
    """

    def __init__(self, model: Classifier, options: Options) -> None:
        if not model.num_classes:
            raise ValueError(
                "this model has no classifier (num_classes is 0), so it cannot predict classes"
            )
        super().__init__(model, options)
        self.names = label_names(model)

    def predict(self, batch: Sequence[Tensor]) -> list[dict[str, Any]]:
        """Return the most probable classes of each image, the best first."""
        logits = self.model(self.batch(batch))
        scores = logits.sigmoid() if self.model.info.get("multi_label") else logits.softmax(-1)
        best = scores.topk(min(self.options.top, len(self.names)))
        return [
            {
                "top": [
                    {"label": label, "name": self.names[label], "score": round(score, 6)}
                    for label, score in zip(labels, scores, strict=True)
                    if score >= self.options.score
                ]
            }
            for labels, scores in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def eval_transform(model: Classifier) -> Callable[[Image.Image], Tensor]:
    """Return the transform that the weights were evaluated with."""
    transform: Any = create_transform(**data_config(model))
    return transform


def data_config(model: Classifier) -> dict[str, Any]:
    """Return timm's options of the transform; for grey images, means over the colour channels.

    Raises:
        ValueError: if the model does not take 1 or 3 channels.
    """
    config: dict[str, Any] = resolve_data_config(dict(model.pretrained_cfg), model=model)
    if model.in_chans not in (1, 3):
        raise ValueError(f"this model takes {model.in_chans} channels; image files have 1 or 3")
    if model.in_chans == 1:
        for key in ("mean", "std"):
            config[key] = (fmean(config[key]),)
    return config


def label_names(model: Classifier) -> list[str]:
    """Return class names: the weights' own, ImageNet's for 1,000 classes, else numbers."""
    names = model.info.get("label_names") or ()
    if len(names) == model.num_classes:
        return list(names)
    if model.num_classes == 1000:
        from timm.data import ImageNetInfo

        info = ImageNetInfo()
        return [info.index_to_description(i) for i in range(1000)]
    return [str(i) for i in range(model.num_classes)]


def pixels(model: Classifier, image: Image.Image) -> tuple[Tensor, Image.Image]:
    """Return an image as the model sees it: (C, H, W) normalised, and the same as a PIL image."""
    image = image if model.in_chans == 3 else image.convert("L")
    tensor = eval_transform(model)(image)
    cfg = data_config(model)
    mean, std = (torch.tensor(cfg[key])[:, None, None] for key in ("mean", "std"))
    return tensor, to_pil_image((tensor * std + mean).clamp(0, 1))


def draw(result: dict[str, Any], image: Image.Image) -> Image.Image:
    """Return the image with its most probable classes on a bar above it."""
    width = max(image.width, 160)
    sheet = Image.new("RGB", (width, image.height + 18), "white")
    sheet.paste(image, ((width - image.width) // 2, 18))
    # Of one label, at most one class is more likely than not.
    likely = [each for each in result["top"] if each["score"] >= 0.5] or result["top"][:1]
    text = ", ".join(f"{each['name'][:40]} {100 * each['score']:.1f} %" for each in likely[:3])
    ImageDraw.Draw(sheet).text((4, 3), text or "none", fill="black")
    return sheet


def save_prediction(
    result: dict[str, Any], image: Image.Image, out: Path, stem: str
) -> dict[str, Any]:
    """Write the captioned image to folder ``out``; return the JSON record."""
    draw(result, image).save(out / f"{stem}.png")
    return result
