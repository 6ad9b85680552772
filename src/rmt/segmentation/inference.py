"""Images to their label maps: at once or by windows, at one scale or several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmt.data.resize import keep_ratio, resize_bytes
from rmt.data.windows import starts
from rmt.modeling.necks import full_precision
from rmt.segmentation.chunked_resize import Size, strips
from rmt.segmentation.recipe import Inference
from rmt.segmentation.segmenter import Segmenter


@torch.no_grad()
def label_map(model: Segmenter, image: Tensor, options: Inference | None = None) -> Tensor:
    """Return the most probable class at each pixel of an image.

    Args:
        model: in eval mode.
        image: (C, H, W), uint8.
        options: size, windows, scales and flip; None takes the defaults.

    Returns:
        (H, W), uint8.
    """
    return label_maps(model, image[None], options)[0]


@torch.no_grad()
def label_maps(model: Segmenter, images: Tensor, options: Inference | None = None) -> Tensor:
    """Return the most probable class at each pixel of images of one size.

    With a single view, the images pass the network together, and the logits of all pixels are never
    held at once: those of 150 classes take 2.5 GB for 2048 × 2048. Several views are averaged one
    image after the other.

    Args:
        model: in eval mode.
        images: (B, C, H, W), uint8.
        options: size, windows, scales and flip; None takes the defaults.

    Returns:
        (B, H, W), uint8.
    """
    options = options or Inference()
    # Along the first axis, max is faster than argmax.
    if len(options.scales) > 1 or options.flip:
        averaged = (probabilities(model, image, options) for image in images)
        return torch.stack([found.max(dim=0).indices.byte() for found in averaged])
    ((logits, sizes, _),) = _views(model, images, options)
    return torch.stack(
        [
            torch.cat([strip.max(dim=0).indices.byte() for _, strip in strips(own, sizes)])
            for own in logits
        ]
    )


@torch.no_grad()
def probabilities(model: Segmenter, image: Tensor, options: Inference | None = None) -> Tensor:
    """Return the probability of each class at each pixel of an image, averaged over the views.

    Logits are resized to the size of the resized image, then to that of the original one, both
    bilinearly as in mmseg 0.13; softmax follows.

    Args:
        model: in eval mode.
        image: (C, H, W), uint8.
        options: size, windows, scales and flip; None takes the defaults.

    Returns:
        (K, H, W), in the model's precision, at least float32.
    """
    options = options or Inference()
    total: Tensor | None = None
    for (logits,), sizes, flipped in _views(model, image[None], options):
        if total is None:
            total = logits.new_zeros(len(logits), *image.shape[1:])
        for rows, strip in strips(logits, sizes):
            seen = strip.softmax(dim=0)
            total[:, rows] += seen.flip(2) if flipped else seen
    assert total is not None
    return total.div_(len(options.scales) * (1 + options.flip))


def _views(
    model: Segmenter, images: Tensor, options: Inference
) -> Iterator[tuple[Tensor, list[Size], bool]]:
    """Yield each view's logits (B, K, h, w), the sizes to resize to, and whether it is mirrored."""
    assert not model.training, "a segmenter must be in eval mode, without dropout"
    if model.window and not options.window:
        options = replace(options, window=model.window, stride=0, pad=True)
    weight = next(model.parameters())
    for scale in options.scales:
        scaled = resize_photo(images, options, scale=scale)
        x = normalise(scaled.to(weight.device), *model.channel_statistics).to(weight.dtype)
        height, width = x.shape[2:]
        for flipped in (False, True) if options.flip else (False,):
            view = x.flip(3) if flipped else x
            if options.window:
                side = options.window
                logits = sliding(model, view, window=side, stride=options.step, pad=options.pad)
            else:
                logits = model(view, full_size=False)
            sizes = [(height, width), (images.shape[2], images.shape[3])]
            yield full_precision(logits), sizes, flipped


def sliding(
    model: nn.Module, images: Tensor, *, window: int, stride: int, pad: bool = False
) -> Tensor:
    """Return the logits of overlapping windows, averaged where they overlap.

    The last window of a row or column is moved back to end at the border. An image smaller than
    the window is one window of its own size, or is padded.

    Args:
        model: images (B, C, h, w) -> logits (B, K, h, w).
        images: (B, C, H, W).
        window: side of a window.
        stride: pixels from one window to the next.
        pad: pad smaller images with zeros at the bottom and on the right, and crop the logits.
    """
    height, width = images.shape[2:]
    if pad and min(height, width) < window:
        full = F.pad(images, (0, max(0, window - width), 0, max(0, window - height)))
        return sliding(model, full, window=window, stride=stride)[:, :, :height, :width]
    total = count = None
    for top in starts(height, window, stride):
        for left in starts(width, window, stride):
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
    """Resize (..., H, W) uint8 to the size of evaluation as OpenCV does; keep the aspect ratio."""
    if options.min_size:
        # The limits are rounded down, as in mmseg's multi-scale test.
        short, long = int(options.min_size * scale), int(options.max_size * scale)
        height, width = keep_ratio(*image.shape[-2:], min_size=short, max_size=long)
    else:
        height, width = (max(1, int(side * scale + 0.5)) for side in image.shape[-2:])
    return resize_bytes(image, height, width)


def normalise(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (x − mean) / std of (..., C, H, W) uint8, in float32; ``mean``, ``std`` for 0..1."""
    # Multiplied by 255 before the conversion to float32, so that 123.675 is rounded only once.
    levels = [[255 * value for value in values] for values in (mean, std)]
    centre, spread = torch.tensor(levels, device=image.device)[..., None, None]
    return (image.float() - centre) / spread
