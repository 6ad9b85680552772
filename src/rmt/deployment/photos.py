"""Photos that exports are run on: the user's own, or those of scikit-learn and Matplotlib."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rmt.data.folders import find_images
from rmt.data.images import read_image


def photos(folder: str | Path | None) -> list[Image.Image]:
    """Return images to check an export on.

    Args:
        folder: of images, of which the first four are taken; None takes three photos that come with
            the libraries which this package depends on.

    Raises:
        ValueError: if there is no image that can be read.
    """
    if folder is not None:
        return [read_image(path) for path in find_images([folder])[:4]]
    import matplotlib
    import sklearn.datasets

    found = [Image.fromarray(own) for own in sklearn.datasets.load_sample_images().images]
    own = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    return [*found, read_image(own)] if own.is_file() else found


def batches(
    images: Sequence[Image.Image], size: tuple[int, int], batch: int, about: dict[str, Any]
) -> Iterator[Tensor]:
    """Yield all images as normalised batches (B, C, H, W); the last one starts again.

    Args:
        images: of any size; they are stretched.
        size: height and width.
        batch: images in each.
        about: ``mean`` and ``std``; as many channels as they have.
    """
    pixels = [normalised(image, size, about) for image in images]
    for first in range(0, len(pixels), batch):
        yield torch.stack([*islice(cycle(pixels), first, first + batch)])


def normalised(image: Image.Image, size: tuple[int, int], about: dict[str, Any]) -> Tensor:
    """Return an image of a size as the network takes it, (C, H, W)."""
    mean, std = (torch.tensor(about[name])[:, None, None] for name in ("mean", "std"))
    height, width = size
    small = np.array(image.resize((width, height), Image.Resampling.BILINEAR))
    colours = torch.from_numpy(small).permute(2, 0, 1).float() / 255
    if len(mean) != 3:  # grey, or channels that no photo has
        colours = colours.mean(dim=0, keepdim=True).expand(len(mean), -1, -1)
    return (colours - mean) / std
