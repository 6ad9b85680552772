"""Video files: their frames as images, and drawn frames as a video, by PyAV (FFmpeg)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from PIL import Image

SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts"}
#: Frames of a file without a frame rate get this one.
_RATE = Fraction(25)


def is_video(path: Path) -> bool:
    """Return whether a file is named as a video."""
    return path.suffix.lower() in SUFFIXES


def check_library() -> None:
    """Raise ``ValueError`` if PyAV is not installed."""
    _library()


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
        number: from 0.
        seconds: since the start of the video; None if the file does not say.
        rate: frames per second of the video, on average.
        image: returns it as upright RGB; runs in any thread.
    """

    number: int
    seconds: float | None
    rate: Fraction
    image: Callable[[], Image.Image]


def frames(path: Path) -> Iterator[Frame]:
    """Yield the frames of the first video stream, one by one.

    Raises:
        ValueError: naming the file, if it is damaged or not a video; the frames before that have
            been yielded.
        FileNotFoundError: if there is none.
    """
    av = _library()
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    try:
        # A playlist may be named as a video; it must not reach the network.
        with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video stream")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = stream.average_rate or stream.guessed_rate or _RATE
            for number, frame in enumerate(container.decode(stream)):
                yield Frame(number, frame.time, rate, lambda frame=frame: _upright(frame))
    except av.FFmpegError as error:
        raise ValueError(f"{path} is damaged, or no video: {error.strerror}") from error


def _upright(frame: Any) -> Image.Image:
    image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


class VideoWriter:
    """An MP4 file (H.264) of images of one size; the first image decides on the size.

    Args:
        path: of the file.
        rate: frames per second.
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self._av, self._path, self._rate = _library(), path, rate
        self._container = self._av.open(str(path), "w")
        self._stream: Any = None
        self._last = -1

    def write(self, image: Image.Image, seconds: float | None) -> None:
        """Add an image, to be shown from so many seconds on, or one frame after the last.

        Raises:
            OSError: if the file cannot be written.
        """
        if self._stream is None:
            self._stream = self._container.add_stream("h264", rate=self._rate)
            # The chroma of H.264 has half the resolution, so both sides must be even.
            self._stream.width, self._stream.height = (side + side % 2 for side in image.size)
            self._stream.pix_fmt = "yuv420p"
        sheet = Image.new("RGB", (self._stream.width, self._stream.height))
        sheet.paste(image)
        frame = self._av.VideoFrame.from_image(sheet)
        frame.time_base = Fraction(1, 90_000)  # MPEG's clock
        at = self._last + round(90_000 / self._rate) if seconds is None else round(seconds * 90_000)
        self._last = frame.pts = max(at, self._last + 1)  # times must increase
        self._encode(frame)

    def close(self) -> None:
        """Write what is left, and close the file; raises as :meth:`write`."""
        try:
            if self._stream is not None:
                self._encode(None)
        finally:
            self._container.close()

    def _encode(self, frame: Any) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except self._av.FFmpegError as error:
            raise OSError(f"{self._path} cannot be written: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _library() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ValueError("reading a video needs PyAV: pip install 'rmt-vision[video]'") from error
    return av
