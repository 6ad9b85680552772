"""What is to be predicted: image files, standard input, lists of files, frames of videos."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from rmt.data.findings import Findings
from rmt.data.folders import find_images
from rmt.data.images import decode_image, read_image
from rmt.data.text import read_lines
from rmt.tools.video import Frame, check_library, frames, is_video

log = logging.getLogger(__name__)

#: The name of standard input.
STDIN = "-"


@dataclass(frozen=True)
class Source:
    """An image to be predicted.

    Attributes:
        path: of its file, ``-`` for standard input.
        stem: name of what is written about it, without suffix.
        read: returns it as RGB; raises what :func:`rmt.data.images.read_image` raises.
        about: further entries of its record.
        frame: of the video that it belongs to.
    """

    path: Path
    stem: str
    read: Callable[[], Image.Image]
    about: dict[str, Any] = field(default_factory=dict)
    frame: Frame | None = None


def listed(file: str | Path) -> list[str]:
    """Return the paths that a text file lists, one per line; ``-`` is standard input.

    Raises:
        ValueError: if it lists none.
    """
    if str(file) == STDIN:
        name, lines = "standard input", sys.stdin.read().splitlines()
        paths = [line.strip() for line in lines if line.strip()]
    else:
        name, paths = str(file), read_lines(Path(file))
    if not paths:
        raise ValueError(f"{name} lists no file; expected one path per line")
    return paths


def find_files(sources: Sequence[str | Path]) -> list[Path]:
    """Return the files of images and videos, in order, with ``-`` for standard input.

    What folders hold that may be images and is left out is logged.

    Args:
        sources: what :func:`rmt.data.folders.find_images` takes, and ``-``.

    Raises:
        ValueError: if there is no image, or a video and not the library to read it.
    """
    if not sources:
        raise ValueError("there is nothing to predict: name an image, a video or a folder")
    findings, found = Findings(), []
    batch: list[str | Path] = []
    for source in sources:
        if str(source) == STDIN:
            found += find_images(batch, findings) if batch else []
            found.append(Path(STDIN))
            batch = []
        else:
            batch.append(source)
    found += find_images(batch, findings) if batch else []
    if found.count(Path(STDIN)) > 1:
        raise ValueError("- is standard input, which holds one image; name it once")
    if any(map(is_video, found)):
        check_library()
    if left_out := findings.describe():
        log.warning("%s", left_out)
    return found


def open_sources(paths: Iterable[Path]) -> Iterator[Source]:
    """Yield each image, and each frame of each video; frames are decoded one by one."""
    paths = list(paths)
    for path, stem in zip(paths, output_names(paths), strict=True):
        if str(path) == STDIN:
            yield Source(path, stem, _read_stdin)
        elif is_video(path):
            yield from _frames(path, stem)
        else:
            yield Source(path, stem, lambda path=path: read_image(path))


def _frames(path: Path, stem: str) -> Iterator[Source]:
    def fail(error: Exception) -> Image.Image:
        raise error

    try:
        for frame in frames(path):
            about = {"frame": frame.number, "seconds": frame.seconds}
            yield Source(path, stem, frame.image, about, frame)
    except (ValueError, OSError) as error:
        yield Source(path, stem, lambda error=error: fail(error))


def _read_stdin() -> Image.Image:
    content = sys.stdin.buffer.read()
    if not content:
        raise ValueError("standard input is empty (0 bytes)")
    return decode_image(BytesIO(content), name="standard input")


def output_names(paths: Iterable[Path]) -> list[str]:
    """Return an output name for each image: its own, with a number if that is taken.

    The names, and the names with ``_labels`` appended, differ even if upper and lower case are the
    same to the file system. That of standard input is ``stdin``.
    """
    taken: set[str] = set()
    names = []
    for path in paths:
        own = "stdin" if str(path) == STDIN else path.stem
        candidates = (own if number == 0 else f"{own}_{number}" for number in count())
        name = next(name for name in candidates if not _files_of(name) & taken)
        taken |= _files_of(name)
        names.append(name)
    return names


def _files_of(name: str) -> set[str]:
    return {name.casefold(), f"{name}_labels".casefold()}
