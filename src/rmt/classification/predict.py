"""A classifier's answer to one picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from timm.data import create_transform, resolve_data_config
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from rmt.model import RMT

#: What :func:`predictor` takes.
OPTIONS = ("top",)


def predictor(model: RMT, *, top: int = 5) -> Callable[[Image.Image], dict[str, Any]]:
    """Return a function from a picture to ``{"top": [{"label", "name", "score"}, ...]}``.

    Args:
        model: in eval mode; its ``pretrained_cfg`` says how to resize and normalise.
        top: how many classes to name.

    Raises:
        ValueError: if ``top`` is not positive, or the model has no classes.
    """
    if top < 1:
        raise ValueError(f"top is {top}; at least one class must be named")
    if not model.num_classes:
        raise ValueError("this model has no classifier (num_classes=0)")
    transform = eval_transform(model)
    names = label_names(model)

    def predict(image: Image.Image) -> dict[str, Any]:
        pixels = transform(image if model.in_chans == 3 else image.convert("L"))
        weight = next(model.parameters())
        shares = model(pixels[None].to(weight)).softmax(-1)[0]
        scores, labels = shares.topk(min(top, len(shares)))
        return {
            "top": [
                {"label": label, "name": names[label], "score": round(score, 6)}
                for label, score in zip(labels.tolist(), scores.tolist(), strict=True)
            ]
        }

    return predict


def eval_transform(model: RMT) -> Callable[[Image.Image], Tensor]:
    """Return the transform that the weights were evaluated with."""
    config: dict[str, Any] = resolve_data_config(dict(model.pretrained_cfg), model=model)
    transform: Any = create_transform(**config)
    return transform


def label_names(model: RMT) -> list[str]:
    """Return class names: the weights' own, ImageNet's for 1,000 classes, else numbers."""
    if names := model.info.get("label_names"):
        return list(names)
    if model.num_classes == 1000:
        from timm.data import ImageNetInfo

        info = ImageNetInfo()
        return [info.index_to_description(i) for i in range(1000)]
    return [str(i) for i in range(model.num_classes)]


def pixels(model: RMT, picture: Image.Image) -> tuple[Tensor, Image.Image]:
    """Return a picture as the model sees it: (C, H, W) normalised, and the same as a picture."""
    picture = picture if model.in_chans == 3 else picture.convert("L")
    tensor = eval_transform(model)(picture)
    cfg = resolve_data_config(dict(model.pretrained_cfg), model=model)
    mean, std = (torch.tensor(cfg[key])[:, None, None] for key in ("mean", "std"))
    return tensor, to_pil_image((tensor * std + mean).clamp(0, 1))


def caption(picture: Image.Image, result: dict[str, Any]) -> Image.Image:
    """Return the picture with its best answer on a bar above it."""
    width = max(picture.width, 160)
    sheet = Image.new("RGB", (width, picture.height + 18), "white")
    sheet.paste(picture, ((width - picture.width) // 2, 18))
    best = result["top"][0]
    text = f"{best['name'][:40]} {100 * best['score']:.1f} %"
    ImageDraw.Draw(sheet).text((4, 3), text, fill="black")
    return sheet


def save_prediction(
    result: dict[str, Any], picture: Image.Image, out: Path | None, stem: str
) -> dict[str, Any]:
    """Write the picture with its answer into ``out`` (if given); return the JSON record."""
    if out is not None:
        caption(picture, result).save(out / f"{stem}.png")
    return result
