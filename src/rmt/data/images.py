"""Image files to RGB pictures: every mode that people have, and a clear word about the rest."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as RGB, upright.

    EXIF rotation is applied, palettes and CMYK are converted, 16-bit grey is scaled to 8 bits and
    transparency is laid over white; of an animation the first frame is taken.

    Raises:
        ValueError: if the file is empty, truncated, no image, or would unpack to more pixels than
            Pillow's limit against decompression bombs (179 million).
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")
    return decode_image(path, name=str(path))


def decode_image(source: Path | BytesIO, *, name: str) -> Image.Image:
    """Decode the content of an image file as :func:`read_image` does; ``name`` is for messages.

    Raises:
        ValueError: if it is truncated, no image, or a decompression bomb.
    """
    with _named(name), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's: what it can read is good enough
        with Image.open(source) as image:
            return to_rgb(image)


def decoded(image: Image.Image) -> Image.Image:
    """Return a picture as :func:`to_rgb` does, though its file may only be read now.

    Raises:
        ValueError: if that fails.
    """
    with _named(str(getattr(image, "filename", "") or "the picture")):
        return to_rgb(image)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say in one kind of error what is wrong with an image."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is no image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} is a decompression bomb: {error}; raise PIL.Image.MAX_IMAGE_PIXELS if the "
            "file is to be trusted"
        ) from error
    except MemoryError:
        raise  # the machine's fault, not the file's
    except Exception as error:  # damaged bytes can raise anything in a decoder
        raise ValueError(f"{name} is damaged: {type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a picture of any mode to upright 8-bit RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _grey(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """Scale grey of 16 or 32 bits, or of floats, to 8 bits."""
    grey = np.nan_to_num(np.asarray(image, dtype=np.float64))
    if image.mode.startswith("I;16"):
        top = 65535
    else:  # nothing says what is white: the least of the usual ends that holds all values
        ends = (1, 255, 65535) if image.mode == "F" else (255, 65535)
        top = next((end for end in ends if grey.max() <= end), grey.max())
    return Image.fromarray((grey * (255 / top)).clip(0, 255).round().astype(np.uint8))


def find_images(sources: Iterable[str | Path]) -> list[Path]:
    """Return the image files that files, folders (searched deep) and glob patterns name, in order.

    A file is taken whatever its suffix; in a folder only the suffixes of images count, and hidden
    files do not. A name of what is not there stays in the list, for a report in its place.

    Raises:
        ValueError: if a folder or pattern holds no image, or none of the files is there.
    """
    found: list[Path] = []
    for source in sources:
        path = local_path(source)
        if path.is_dir():
            inside = images_in(path)
            if not inside:
                raise ValueError(f"folder {str(path)!r} holds no image ({', '.join(SUFFIXES)})")
            found += inside
        elif path.exists() or not glob.has_magic(str(source)):
            found.append(path)
        else:
            matches = sorted(Path(p) for p in glob.glob(str(source), recursive=True))
            matches = [path for path in matches if path.is_file()]
            if not matches:
                raise ValueError(f"no file, folder or pattern {str(source)!r} matches a file")
            found += matches
    if not any(path.exists() for path in found):
        raise ValueError(f"there is no file or folder {str(found[0])!r}" if found else "no image")
    return found


def images_in(folder: Path) -> list[Path]:
    """Return the files below a folder that are named as images and not hidden, sorted."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.is_dir()
    )


def local_path(name: str | Path) -> Path:
    """Return the path that a name is, or a ``file://`` address.

    Raises:
        ValueError: for an address on the network.
    """
    address = urlsplit(str(name))
    if address.scheme in ("http", "https", "ftp"):
        raise ValueError(f"{name} is on the network; download it, and name the file")
    if address.scheme == "file":
        return Path(url2pathname(address.path))
    return Path(name)
