"""timm's RandAugment, mended where a newer Pillow refuses what it asks for."""

from __future__ import annotations

from typing import Any

from PIL import Image
from timm.data import auto_augment


def mended(transform: Any) -> Any:
    """Return a composed transform of timm whose RandAugment posterizes to no bits again.

    At its full strength timm's ``PosterizeIncreasing`` keeps no bits of a pixel, which
    ``rand-m9-mstd0.5-inc1`` asks for now and then. Older versions of Pillow answer
    with a black image, as when the published recipes ran; version 13 raises ``ValueError``.
    """
    for part in transform.transforms:
        for op in part.ops if isinstance(part, auto_augment.RandAugment) else ():
            if op.aug_fn is auto_augment.posterize:
                op.aug_fn = posterize
    return transform


def posterize(picture: Image.Image, bits: int, **options: Any) -> Image.Image:
    """Return a picture with so many bits a channel, 0 to 8; ``options`` are timm's, unused."""
    if bits == 0:
        return Image.new(picture.mode, picture.size)
    return auto_augment.posterize(picture, bits, **options)
