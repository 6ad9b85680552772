"""What prediction writes besides records: drawings, videos, and annotations to be corrected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from PIL import Image

from rmt.modeling.pretrained import Pretrained
from rmt.task import get_task
from rmt.tools.sources import STDIN, Source
from rmt.tools.video import VideoWriter, is_video


class Outputs:
    """Writes each result in the ways that are asked for; a context, which finishes the files.

    Args:
        model: that predicts.
        drawings: folder for an image for each image and a video for each video; None draws nothing.
        annotations: folder for a data set of the detections; None writes none.
        to: format of the data set.

    Raises:
        ValueError: for annotations that the model's task does not have, in an unknown format, or in
            a folder that is not empty.
    """

    def __init__(
        self, model: Pretrained, *, drawings: Path | None, annotations: Path | None, to: str
    ) -> None:
        self.task, self.drawings = get_task(model.task).prediction(), drawings
        self._video: tuple[str, VideoWriter] | None = None
        self._annotations = None
        if annotations is not None:
            if self.task.annotations is None:
                raise ValueError(
                    f"--annotations writes the objects of a detector; this is a {model.task} model"
                )
            self._annotations = self.task.annotations(model, annotations, to)
        if drawings is not None:
            drawings.mkdir(parents=True, exist_ok=True)

    def add(
        self, source: Source, image: Image.Image | None, result: dict[str, Any]
    ) -> dict[str, Any]:
        """Write a result; return its JSON record.

        Raises:
            OSError: if a file cannot be written.
        """
        if self._annotations is not None:
            self._annotations.add(source.path, source.stem, result)
        if self.drawings is None or image is None:
            return self.task.record(result)
        if source.frame is None:
            return self.task.save(result, image, self.drawings, source.stem)
        if self._video is None or self._video[0] != source.stem:
            self._finish_video()
            path = self.drawings / f"{source.stem}.mp4"
            self._video = source.stem, VideoWriter(path, source.frame.rate)
        self._video[1].write(self.task.draw(result, image), source.frame.seconds)
        return self.task.record(result)

    def _finish_video(self) -> None:
        if self._video is not None:
            self._video[1].close()
            self._video = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._finish_video()
        if self._annotations is not None:
            self._annotations.close()


def check_folders(
    paths: Sequence[Path], *, drawings: Path | None, annotations: Path | None
) -> None:
    """Refuse a folder of the images for the drawings, and annotations of anything but image files.

    Raises:
        ValueError: naming the folder, or the file.
    """
    for path in paths:
        if drawings is not None and path.parent.resolve() == drawings.resolve():
            raise ValueError(
                f"--out {drawings} is the folder of {path.name}, which could be overwritten; name "
                "another folder"
            )
        if annotations is not None and (is_video(path) or str(path) == STDIN):
            raise ValueError(
                f"--annotations writes a data set of image files, and {path} is not one; extract "
                "the frames of a video, or save the image, first"
            )
