"""Image files to RGB: every mode that people have, and a clear message about the rest."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image, UnidentifiedImageError

from rmt.files import check_file

_ORIENTATION = 0x0112  # EXIF; above 4 width and height change places
# What turns an image upright by its orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where Pillow keeps the orientation of an image in memory.
_NOTES = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
#: Pillow's names of the formats that are read. Others (PSD, EPS by Ghostscript, PDF ...) are not:
#: each decoder is one more that damaged or hostile bytes may reach.
FORMATS = (
    "JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "HEIF",
)  # fmt: skip
#: A longer side so many times the shorter one is refused: resizing the short side to some hundred
#: pixels would make billions of them.
MOST_ASPECT = 200
#: Rows of 16-bit grey are scaled in strips of about so many pixels.
_STRIP = 2**22


class _Quiet:
    """No warnings while any thread decodes an image: what Pillow can read is good enough.

    The filters of warnings belong to the process. With ``warnings.catch_warnings`` in several
    threads, one would restore them under another, or leave them changed for good.
    """

    def __init__(self) -> None:
        self._lock, self._inside = Lock(), 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._filters.__exit__(None, None, None)


_QUIET = _Quiet()


def register_plugins() -> set[str]:
    """Let Pillow use the plugin for HEIC photos if there is one; return all suffixes it reads."""
    Image.preinit()  # the usual formats: they are then tried before the rare ones
    try:
        from pillow_heif import register_heif_opener  # pyrefly: ignore[missing-import]
    except ImportError:
        pass
    else:
        register_heif_opener()
    formats = Image.registered_extensions()
    # The JPEG reader takes MPO, the two frames of a stereo camera.
    return {suffix for suffix, name in formats.items() if name in Image.OPEN or name == "MPO"}


def read_image(path: str | Path) -> Image.Image:
    """Read an image file as RGB, upright.

    EXIF rotation is applied, palettes and CMYK are converted, 16-bit grey is scaled to 8 bits and
    transparency is laid over white; of an animation the first frame is taken.

    Raises:
        ValueError: if the file is empty, truncated, not an image, would unpack to more pixels than
            Pillow's limit against decompression bombs (179 million), or the system refuses it.
        FileNotFoundError: if there is none.
    """
    path = Path(path)
    check_file(path)
    return decode_image(path, name=str(path))


def read_image_like(path: Path, size: tuple[int, int]) -> Image.Image:
    """Read an image file as :func:`read_image` does, in the frame that its annotations lie in.

    Some tools annotate photos as their pixels are stored, without the EXIF rotation: an image that
    has the annotations' (width, height) only so is not rotated. It may have another size still.
    """
    image = read_image(path)
    if image.size == size or image.size != size[::-1]:
        return image
    stored = decode_image(path, name=str(path), upright=False)
    return stored if stored.size == size else image


def image_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of an upright image, from the head of its file where that suffices.

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        check_file(path)
        with named_faults(str(path)), _QUIET, open_image(path) as image:
            turned = _orientation(image) > 4
            return image.size[::-1] if turned else image.size
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error
    except ValueError:
        return read_image(path).size  # says what is wrong


def is_bomb(size: tuple[int, int]) -> bool:
    """Return whether an image of (width, height) is refused as a decompression bomb."""
    return Image.MAX_IMAGE_PIXELS is not None and math.prod(size) > 2 * Image.MAX_IMAGE_PIXELS


def is_animated(path: Path) -> bool:
    """Return whether an image file has several frames; False if it cannot be read."""
    try:
        check_file(path)
        with _QUIET, open_image(path) as image:
            return bool(getattr(image, "is_animated", False))
    except Exception:  # damaged bytes can raise anything; reading says what is wrong
        return False


def decode_image(source: Path | BytesIO, *, name: str, upright: bool = True) -> Image.Image:
    """Decode the content of an image file as :func:`read_image` does.

    Args:
        source: path of the file, or its content.
        name: for messages.
        upright: whether to apply the EXIF rotation.

    Raises:
        ValueError: if it is truncated, not an image, or a decompression bomb.
    """
    with named_faults(name), _QUIET, open_image(source) as image:
        return to_rgb(image, upright=upright)


def open_image(source: Path | BytesIO) -> Image.Image:
    """Open an image file of :data:`FORMATS` as Pillow does, without reading its pixels.

    Raises:
        UnidentifiedImageError: if it is none of them.
        Exception: what Pillow raises for a damaged file, or if one side is far too long.
    """
    known = [name for name in FORMATS if name in Image.OPEN]
    try:
        image = Image.open(source, formats=known or FORMATS)
    except UnidentifiedImageError:
        register_plugins()  # in this process nothing may have listed a folder yet
        image = Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN])
    short, long = sorted(image.size)
    if long > MOST_ASPECT * max(short, 1):
        image.close()
        raise _TooLong(f"{image.width}x{image.height} pixels: one side is more than {MOST_ASPECT} "
                       "times the other; crop the image")  # fmt: skip
    return image


def decoded(image: Image.Image) -> Image.Image:
    """Return an image as :func:`to_rgb` does, though its file may only be read now.

    Raises:
        ValueError: if that fails.
    """
    with named_faults(str(getattr(image, "filename", "") or "the image")):
        return to_rgb(image)


class _TooLong(Exception):  # noqa: N818 (it becomes a ValueError that names the file)
    """An image whose sides differ too much."""


@contextmanager
def named_faults(name: str) -> Iterator[None]:
    """Say in one kind of error what is wrong with an image."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not an image that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} is a decompression bomb: {error}; raise PIL.Image.MAX_IMAGE_PIXELS if the "
            "file is to be trusted"
        ) from error
    except _TooLong as error:
        raise ValueError(f"{name} has {error}") from error
    except MemoryError:
        raise  # the machine's fault, not the file's
    except Exception as error:  # damaged bytes can raise anything in a decoder
        raise ValueError(f"{name} is damaged: {type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image, *, upright: bool = True) -> Image.Image:
    """Convert an image of any mode to 8-bit RGB, ``upright`` if its EXIF says how it lay."""
    if upright and (turn := _TURNS.get(_orientation(image))) is not None:
        image = image.transpose(turn)
        for key in _NOTES:  # else it would be turned once more
            image.info.pop(key, None)
    if image.mode.startswith("I") or image.mode == "F":
        image = _grey(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) if there is none or the EXIF data are damaged."""
    try:
        number = image.getexif().get(_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # damaged bytes can raise anything here, and the pixels may be good
        return 1
    return number if number in _TURNS else 1


def _grey(image: Image.Image) -> Image.Image:
    """Scale grey of 16 or 32 bits, or of floats, to 8 bits."""
    grey = np.asarray(image)
    if image.mode.startswith("I;16"):
        top = 65535
    else:  # nothing says what is white: the least of the usual ends that holds all values
        ends = (1, 255, 65535) if image.mode == "F" else (255, 65535)
        largest = np.nan_to_num(grey.max(initial=0, where=~np.isnan(grey)))
        top = next((end for end in ends if largest <= end), largest)
    scaled = np.empty(grey.shape, dtype=np.uint8)
    step = max(1, _STRIP // max(1, image.width))
    for first in range(0, len(grey), step):  # in float64 the whole would take eight times as much
        strip = np.nan_to_num(grey[first : first + step].astype(np.float64))
        scaled[first : first + step] = (strip * (255 / top)).clip(0, 255).round()
    return Image.fromarray(scaled)
