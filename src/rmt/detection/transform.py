"""Images of any size and their targets to one normalised batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rmt.data.resize import keep_ratio, resize_bytes

#: ImageNet's mean and standard deviation, on the scale of 0 to 255 as in the release's pipelines.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
_DIVISOR = 32

Target = Mapping[str, Tensor]


@dataclass
class Batch:
    """Normalised images on one canvas, with their sizes before and after resizing.

    Attributes:
        pixels: (B, 3, H, W), zero-padded on the right and at the bottom.
        sizes: (B, 2), height and width of each resized image.
        padded: (B, 2), the same rounded up to multiples of 32.
        originals: (B, 2), height and width of each original image.
        scales: (B, 4), resized size divided by original size, for x, y, x, y; float32.
    """

    pixels: Tensor
    sizes: Tensor
    padded: Tensor
    originals: Tensor
    scales: Tensor


class Transform:
    """Resizes, normalises and pads images as the release's COCO test pipeline does.

    Images are rounded to 8 bits first and resized as by OpenCV, so that an image from a file gives
    the same tensor as the release, bit for bit.

    Args:
        min_size: length of the short side after resizing, in pixels.
        max_size: largest length of the long side; the short side gets smaller if necessary.

    Attributes:
        canvas: the only canvas (h, w) that a network takes: images are made to fit into it, keeping
            their ratio, and padded to it. None pads each image to the next multiples of 32.

    Raises:
        ValueError: for a size that is not positive, or ``min_size`` above ``max_size``.
    """

    canvas: tuple[int, int] | None = None

    def __init__(self, min_size: int, max_size: int) -> None:
        if not 1 <= min_size <= max_size:
            raise ValueError(
                f"min_size is {min_size} and max_size is {max_size}; both must be positive, and "
                "max_size at least min_size"
            )
        self.min_size, self.max_size = min_size, max_size

    def size_of(self, image: Tensor, *, resize: bool = True) -> tuple[int, int]:
        """Return height and width of an image (3, h, w) after resizing."""
        height, width = image.shape[1:]
        if not resize:
            return height, width
        size = keep_ratio(height, width, min_size=self.min_size, max_size=self.max_size)
        if self.canvas is None:
            return size
        scale = min(self.canvas[0] / height, self.canvas[1] / width)
        fitting = (max(1, int(side * scale + 0.5)) for side in (height, width))
        height, width = map(min, size, fitting)  # both keep the ratio: one is the smaller
        return height, width

    def canvas_of(self, image: Tensor, *, resize: bool = True) -> tuple[int, int]:
        """Return height and width after resizing, rounded up to multiples of 32 or the canvas.

        Raises:
            ValueError: if an image that is not to be resized is larger than the only canvas.
        """
        height, width = self.size_of(image, resize=resize)
        if self.canvas is not None:
            if height > self.canvas[0] or width > self.canvas[1]:
                raise ValueError(
                    f"an image of {height}×{width} is larger than the network's canvas, "
                    f"{self.canvas[0]}×{self.canvas[1]}"
                )
            return self.canvas
        return -(-height // _DIVISOR) * _DIVISOR, -(-width // _DIVISOR) * _DIVISOR

    def batch(self, images: Sequence[Tensor], *, like: Tensor, resize: bool = True) -> Batch:
        """Resize images and pad them to the smallest canvas that fits all of them.

        Args:
            images: each (3, h, w), RGB floats in 0..1.
            like: a tensor with the dtype and device for the batch.
            resize: False if a data pipeline has already resized the images.
        """
        sizes = [self.size_of(x, resize=resize) for x in images]
        padded = [self.canvas_of(x, resize=resize) for x in images]
        height, width = (max(sides) for sides in zip(*padded, strict=True))
        pixels = torch.stack(
            [
                F.pad(normalise(x.to(like.device), size), (0, width - size[1], 0, height - size[0]))
                for x, size in zip(images, sizes, strict=True)
            ]
        )
        device = like.device
        sizes_ = torch.tensor(sizes, device=device)
        originals = torch.tensor([x.shape[1:] for x in images], device=device)
        # Divided in float64 and stored in float32, as the release's scale factors.
        scales = (sizes_.double() / originals).float().flip(1).repeat(1, 2)
        padded_ = torch.tensor(padded, device=device)
        return Batch(pixels.to(like.dtype), sizes_, padded_, originals, scales)

    def targets(self, targets: Sequence[Target], batch: Batch) -> list[dict[str, Tensor]]:
        """Scale boxes and masks from the original images to the batch's pixels.

        Args:
            targets: ``boxes`` (N, 4), ``labels`` (N,) and optionally ``masks`` (N, h, w).
            batch: of their images.
        """
        scaled = []
        for i, target in enumerate(targets):
            height, width = batch.sizes[i].tolist()
            limit = torch.tensor([width, height] * 2, device=batch.scales.device)
            boxes = target["boxes"].to(batch.scales) * batch.scales[i]
            new = {
                "boxes": boxes.clamp(min=0).minimum(limit.to(boxes.dtype)),
                "labels": target["labels"].to(limit.device, torch.long),
            }
            if "masks" in target:
                masks = target["masks"].to(limit.device, torch.uint8)[None]
                if masks.shape[2:] != (height, width) and masks.numel():
                    masks = F.interpolate(masks, size=(height, width), mode="nearest")
                bottom, right = batch.padded[i, 0] - height, batch.padded[i, 1] - width
                new["masks"] = F.pad(masks[0], (0, int(right), 0, int(bottom)))
            scaled.append(new)
        return scaled


def normalise(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return ``image`` (3, h, w), floats in 0..1, resized to ``size``, normalised, float32."""
    levels = (image * 255).round().clamp(0, 255).byte()
    levels = resize_bytes(levels, *size).float()
    mean = torch.tensor(MEAN, device=image.device)[:, None, None]
    std = torch.tensor(STD, device=image.device)[:, None, None]
    return (levels - mean) / std
