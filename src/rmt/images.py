"""Image files to RGB pictures: every mode that people have, and a clear word about the rest."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
#: Pixels beyond which a file is taken for a decompression bomb (a 16k x 16k picture passes).
MAX_PIXELS = 2**28


def read_image(path: str | Path, channels: int = 3) -> Image.Image:
    """Read an image file as RGB (or grey for one channel), upright.

    EXIF rotation is applied, palettes and CMYK are converted, 16-bit grey is scaled to 8 bits and
    transparency is laid over white.

    Raises:
        ValueError: if the file is empty, truncated, no image, or larger than ``MAX_PIXELS``.
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"{path} would unpack to {image.width}x{image.height} pixels, over the limit "
                    f"of {MAX_PIXELS}; raise rmt.images.MAX_PIXELS if the file is to be trusted"
                )
            image.load()
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is a decompression bomb: {error}") from error
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return to_rgb(image) if channels == 3 else to_rgb(image).convert("L")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to upright 8-bit RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # 16 or 32 bits of grey
        grey = np.asarray(image, dtype=np.float64)
        top = 65535 if image.mode.startswith("I") and grey.max(initial=0) > 255 else 255
        image = Image.fromarray((grey * (255 / top)).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def find_images(sources: Iterable[str | Path]) -> list[Path]:
    """Return the image files that files, folders (searched deep) and glob patterns name, in order.

    A file is taken whatever its suffix; in a folder only the suffixes of images count.

    Raises:
        ValueError: if a source matches nothing.
    """
    found: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise ValueError(f"folder {str(path)!r} holds no image ({', '.join(SUFFIXES)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            matches = sorted(Path(p) for p in glob.glob(str(source), recursive=True))
            if not matches:
                raise ValueError(f"no file, folder or pattern {str(source)!r} matches anything")
            found += matches
    return found
