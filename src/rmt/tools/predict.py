"""Prediction of images with a model of any task."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from rmt.data.findings import Findings
from rmt.data.folders import find_images, local_path
from rmt.data.images import decoded, read_image
from rmt.messages import did_you_mean, printable
from rmt.modeling.pretrained import Pretrained
from rmt.task import get_task
from rmt.weights.load import load

log = logging.getLogger(__name__)

#: The weights in this package that predict where no others are named.
DEFAULT_WEIGHTS = "rmt_nano.tiny_imagenet"
Picture = str | Path | Image.Image | np.ndarray


class Predictor:
    """A model with its transforms: one image in, one plain dict out, in original pixels.

    Args:
        model: any model of this package; put into eval mode.
        device: where to run; ``auto`` is the accelerator if there is one, else the CPU.
        **options: of the model's task: ``top`` (classification), ``score`` (detection), or the
            fields of :class:`rmt.segmentation.recipe.Inference`, such as ``window``.

    Raises:
        ValueError: for a device that is not available, an option that the model's task does not
            have, or a value out of range.
    """

    def __init__(self, model: Pretrained, *, device: str = "auto", **options: Any) -> None:
        task = get_task(model.task).prediction()
        chosen: Any = task.default_options(model)
        known = [field.name for field in fields(chosen) if field.init]
        for name in options:
            if name not in known:
                raise ValueError(
                    f"{name!r} is not an option of a {model.task} model{did_you_mean(name, known)}"
                )
        self.device = find_device(device)
        try:
            self.model = model.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device {device!r} cannot be used: {reason}") from error
        self._predict = task.predictor(model, replace(chosen, **options))

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, device: str = "auto", **options: Any) -> Self:
        """Return the predictor of anything that :func:`rmt.load` reads."""
        return cls(load(path), device=device, **options)

    def __call__(self, image: Picture) -> dict[str, Any]:
        """Predict one image.

        Args:
            image: a path or ``file://`` address, a PIL image, or an array (H, W) or (H, W, 3) of
                8 bits, RGB.

        Returns:
            Plain values, as ``rmt predict --json`` writes them; masks and label maps as arrays.

        Raises:
            ValueError: naming the image, if it cannot be read.
        """
        return self.predict_rgb(as_picture(image))

    def predict_rgb(self, image: Image.Image) -> dict[str, Any]:
        """Predict one image that is already upright and RGB, as :func:`as_picture` returns it."""
        with torch.inference_mode():
            return self._predict(image)

    def stream(self, images: Iterable[Picture]) -> Iterator[dict[str, Any]]:
        """Yield the prediction of each image; for an unreadable one ``{"image", "error"}``."""
        for image in images:
            name = str(image) if isinstance(image, str | Path) else "array"
            try:
                yield {"image": name} | self(image)
            except (ValueError, FileNotFoundError) as error:
                yield {"image": name, "error": str(error)}


def find_device(name: str) -> torch.device:
    """Return a device by name; ``auto`` is the accelerator if there is one, else the CPU.

    Raises:
        ValueError: for a name that torch does not know.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used: {reason}") from error


def as_picture(image: Picture) -> Image.Image:
    """Return an image as upright RGB.

    Raises:
        ValueError: for an array that is not an 8-bit image, or a file that cannot be read.
    """
    if isinstance(image, str | Path):
        return read_image(local_path(image))
    if isinstance(image, np.ndarray):
        flat = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
        if image.dtype != np.uint8 or not flat or not image.size:
            raise ValueError(
                f"expected an array of uint8, (H, W) or (H, W, 3), got {image.dtype} {image.shape}"
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"a {type(image).__name__} is not an image; give a path, an array or a PIL image"
        )
    return decoded(image)


def predict_files(
    sources: Iterable[str | Path],
    checkpoint: str | Path | None = None,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Predict files, folders and glob patterns; with ``out``, draw the predictions on the images.

    Args:
        sources: what :func:`rmt.data.folders.find_images` takes.
        checkpoint: what :func:`rmt.load` reads; None takes :data:`DEFAULT_WEIGHTS`, and says so.
        out: folder for the drawn images (and label maps of a segmenter); not one that holds
            images to predict.
        device: where to run.
        **options: of the model's task, as :class:`Predictor` takes them.

    Yields:
        The JSON record of each image, in order; ``{"image", "error"}`` for one that cannot be
        read, predicted or saved.

    Raises:
        ValueError: if there is no image, or ``out`` is a folder of the images.
    """
    findings = Findings()
    paths = find_images(sources, findings)
    if left_out := findings.describe():
        log.warning("%s", left_out)
    folder = None if out is None else Path(out)
    if folder is not None:
        _refuse_own_folder(folder, paths)
        folder.mkdir(parents=True, exist_ok=True)
    if checkpoint is None:
        checkpoint = DEFAULT_WEIGHTS
        log.warning("no --checkpoint is given: using %s, which comes with this package", checkpoint)
    model = load(checkpoint)
    save = get_task(model.task).prediction().save
    predictor = Predictor(model, device=device, **options)
    for stem, path in zip(output_names(paths), paths, strict=True):
        record = {"image": str(path)}
        try:
            image = read_image(path)
            yield record | save(predictor.predict_rgb(image), image, folder, stem)
        except (ValueError, OSError) as error:
            yield record | {"error": str(error)}
        except (MemoryError, RuntimeError) as error:  # such as an image too large for the memory
            yield record | {"error": f"{path} failed: {type(error).__name__}: {error}"}


def output_names(paths: Iterable[Path]) -> list[str]:
    """Return an output name for each image: its own, with a number if that is taken.

    The names, and the names with ``_labels`` appended, differ even if upper and lower case are the
    same to the file system.
    """
    taken: set[str] = set()
    names = []
    for path in paths:
        for number in count():
            name = path.stem if number == 0 else f"{path.stem}_{number}"
            files = {name.casefold(), f"{name}_labels".casefold()}
            if not files & taken:
                break
        taken |= files
        names.append(name)
    return names


def _refuse_own_folder(out: Path, paths: Iterable[Path]) -> None:
    for path in paths:
        if path.parent.resolve() == out.resolve():
            raise ValueError(
                f"--out {out} is the folder of {path.name}, which could be overwritten; name "
                "another folder"
            )


def describe(record: dict[str, Any]) -> str:
    """Return a record of :func:`predict_files` as one readable line.

    Names of files and classes cannot do anything to the terminal in it.
    """
    return printable(_line(record), limit=4000)


def _line(record: dict[str, Any]) -> str:
    name = record["image"]
    if "error" in record:
        return f"{name}  ERROR {record['error']}"
    if "top" in record:
        best = "  ".join(f"{top['name']} {100 * top['score']:.1f} %" for top in record["top"])
        return f"{name}  {best}"
    if "detections" in record:
        count = Counter(found["name"] for found in record["detections"])
        listed = ", ".join(f"{n} {kind}" for kind, n in count.most_common())
        return f"{name}  {len(record['detections'])} objects: {listed or 'none'}"
    areas = sorted(record["classes"].items(), key=lambda item: -item[1]["share"])
    return f"{name}  " + ", ".join(f"{kind} {100 * c['share']:.1f} %" for kind, c in areas[:5])
