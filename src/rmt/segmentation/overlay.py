"""Label maps as images: PNGs of class indices, and coloured overlays with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from rmt.segmentation.segmenter import IGNORED

#: Most names in a legend; the classes with the largest areas are named.
MOST_NAMES = 24


def save_labels(labels: np.ndarray, path: str | Path, palette: np.ndarray) -> Path:
    """Write labels (H, W) as a PNG of class indices with a palette that viewers show."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    image.putpalette(palette.astype(np.uint8).tobytes())
    image.save(path)
    return path


def overlay(
    image: Image.Image, labels: np.ndarray, *, palette: np.ndarray, opacity: float = 0.55
) -> Image.Image:
    """Return the image with each pixel tinted by its class; ignored pixels stay as they are."""
    table = np.zeros((256, 3), dtype=np.float32)
    table[: len(palette)] = palette
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    tinted = (1 - opacity) * pixels + opacity * table[labels]
    tinted[labels == IGNORED] = pixels[labels == IGNORED]
    return Image.fromarray(tinted.round().astype(np.uint8))


def draw_overlay(
    image: Image.Image,
    labels: np.ndarray,
    path: str | Path,
    *,
    names: Sequence[str],
    palette: np.ndarray,
) -> Path:
    """Write the overlay at the image's own size, with a legend of the classes below it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tinted = overlay(image, labels, palette=palette)
    dpi = 100
    width = max(tinted.width, 320)
    present = by_area(labels)[:MOST_NAMES]
    columns = max(1, width // 180)
    rows = -(-len(present) // columns)
    below = 12 + 20 * rows
    figure = Figure(figsize=(width / dpi, (tinted.height + below) / dpi), dpi=dpi)
    figure.figimage(np.asarray(tinted), xo=(width - tinted.width) // 2, yo=below)
    figure.legend(
        handles=[patch(names[i], palette[i]) for i in present],
        loc="lower center",
        ncols=columns,
        fontsize=8,
        frameon=False,
        borderaxespad=0.1,
    )
    figure.savefig(path)
    return path


def by_area(labels: np.ndarray) -> list[int]:
    """Return the classes that occur in a label map, largest area first."""
    present, counts = np.unique(labels[labels != IGNORED], return_counts=True)
    return present[np.argsort(-counts, kind="stable")].tolist()


def patch(name: str, colour: np.ndarray) -> Patch:
    """Return an entry for a legend."""
    red, green, blue = (colour / 255).tolist()
    return Patch(color=(red, green, blue), label=name.replace("$", r"\$"))  # not a formula
