"""From a photo to probabilities at its own size: whole or by windows, at one scale or several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rmt.resize import keep_ratio, resize_bytes
from rmt.segmentation.blocks import resize, widen
from rmt.segmentation.recipe import Inference
from rmt.segmentation.segmenter import Segmenter


@torch.no_grad()
def probabilities(model: Segmenter, image: Tensor, options: Inference | None = None) -> Tensor:
    """Return the probability of each class at each pixel of an image.

    Logits go to the resized image's size and from there to the original one, two bilinear steps
    as in mmseg 0.13; then softmax.

    Args:
        model: in eval mode; it knows the mean and spread of its channels.
        image: (C, H, W), uint8.
        options: how to go about it.

    Returns:
        (K, H, W), in the model's precision, at least float32.
    """
    assert not model.training, "a segmenter in training mode drops channels at random"
    options = options or Inference()
    weight = next(model.parameters())
    size = image.shape[1:]
    total: Tensor | None = None
    views = 0
    for scale in options.scales:
        scaled = resize_photo(image, options, scale=scale)
        x = normalise(scaled.to(weight.device), *model.channel_statistics).to(weight.dtype)[None]
        for flipped in (False, True) if options.flip else (False,):
            logits = segment(model, x.flip(3) if flipped else x, options)
            seen = resize(widen(logits), size).softmax(dim=1)
            seen = seen.flip(3) if flipped else seen
            total = seen if total is None else total.add_(seen)
            views += 1
    assert total is not None
    return total.div_(views)[0]


def segment(model: nn.Module, images: Tensor, options: Inference) -> Tensor:
    """Return logits (B, K, H, W) of normalised images (B, C, H, W), whole or by windows."""
    if not options.window:
        return model(images)
    return sliding(model, images, window=options.window, stride=options.step)


def sliding(model: nn.Module, images: Tensor, *, window: int, stride: int) -> Tensor:
    """Average the logits of overlapping windows, each pixel by the number that cover it.

    The last window of a row or column is moved back to end at the border. An image smaller than
    the window is one window.

    Args:
        model: images (B, C, h, w) -> logits (B, K, h, w).
        images: (B, C, H, W).
        window: side of a window.
        stride: pixels from one window to the next.
    """
    height, width = images.shape[2:]
    total = count = None
    for top in _starts(height, window, stride):
        for left in _starts(width, window, stride):
            rows, columns = slice(top, top + window), slice(left, left + window)
            logits = model(images[:, :, rows, columns])
            if total is None or count is None:
                total = logits.new_zeros(len(images), logits.shape[1], height, width)
                count = logits.new_zeros(height, width)
            total[:, :, rows, columns] += logits
            count[rows, columns] += 1
    assert total is not None
    assert count is not None
    return total.div_(count)


def resize_photo(image: Tensor, options: Inference, *, scale: float = 1.0) -> Tensor:
    """Resize (C, H, W) uint8 to the test size, keeping its shape, as OpenCV does."""
    if options.short:
        # Fractions of a pixel are cut off the bounds, as in mmseg's multi-scale test.
        short, long = int(options.short * scale), int(options.long * scale)
        height, width = keep_ratio(*image.shape[1:], short=short, long=long)
    else:
        height, width = (max(1, int(side * scale + 0.5)) for side in image.shape[1:])
    return resize_bytes(image, height, width)


def normalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (x − mean) / std of (..., C, H, W) uint8, in float32; ``mean`` for values in 0..1."""
    # 255 times each value before it becomes float32: 123.675, not one step beside it.
    levels = [[255 * value for value in values] for values in (mean, std)]
    centre, spread = torch.tensor(levels, device=image.device)[..., None, None]
    return (image.float() - centre) / spread


def _starts(length: int, window: int, stride: int) -> list[int]:
    last = max(0, length - window)
    return [*range(0, last, stride), last]
