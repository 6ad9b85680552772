"""Images that are to be written as a data set: the toys of the tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from rmt.data.splits import Split

#: Class -> its images (H, W, 3) of 8 bits.
Drawn = Mapping[str, Sequence[np.ndarray]]


def save_images(folder: Path, split: Split, drawn: Drawn) -> Iterator[tuple[Path, str]]:
    """Write images as ``folder/SPLIT/CLASS/CLASS_0.png``; yield their paths and classes."""
    for name, images in drawn.items():
        for i, image in enumerate(images):
            path = folder / split / name / f"{name}_{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(as_png(image))
            yield path, name


def as_png(image: np.ndarray) -> bytes:
    """Return the content of a PNG file."""
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
