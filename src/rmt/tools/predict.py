"""Prediction of images with a model of any task."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from PIL import Image

from rmt.data.folders import local_path
from rmt.data.images import decoded, read_image
from rmt.deployment.devices import find_device
from rmt.deployment.load import load_with_engine
from rmt.messages import did_you_mean, printable
from rmt.modeling.graphs import Exported
from rmt.modeling.pretrained import Pretrained
from rmt.task import BatchPredictor, get_task
from rmt.tools.outputs import Outputs, check_folders
from rmt.tools.sources import find_files, open_sources
from rmt.tools.stream import FAULTS, Outcome, predict_in_order

log = logging.getLogger(__name__)

#: The weights in this package that predict where no others are named.
DEFAULT_WEIGHTS = "rmt_nano.tiny_imagenet"
T = TypeVar("T")
Picture = str | Path | Image.Image | np.ndarray


class Predictor:
    """A model with its transforms: one image in, one plain dict out, in original pixels.

    Args:
        model: any model of this package; put into eval mode.
        device: where to run; ``auto`` is the accelerator if there is one, else the CPU.
        **options: of the model's task: ``top`` (classification), ``score`` and ``tile``
            (detection), or the fields of :class:`rmt.segmentation.recipe.Inference`, such as
            ``window``.

    Raises:
        ValueError: for a device that is not available, an option that the model's task does not
            have, or a value out of range.
    """

    def __init__(self, model: Pretrained, *, device: str = "auto", **options: Any) -> None:
        task = self.task = get_task(model.task).prediction()
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
        self._steps = self._of_task(replace(chosen, **options))

    def _of_task(self, options: Any) -> BatchPredictor:
        """Return the steps from an image to what it gives."""
        return self.task.predictor(self.model, options)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        engine: str | None = None,
        device: str = "auto",
        **options: Any,
    ) -> Self:
        """Return the predictor of anything that :func:`rmt.load` reads, or of an exported file.

        Args:
            path: a checkpoint, an exported file or a folder of such.
            engine: what runs the network, see
                :func:`rmt.deployment.load.load_with_engine`; None takes torch for a checkpoint,
                and for an exported file the runtime of its format.
            device: where to run; engines of exported files take the CPU only.
            **options: of the model's task.

        Raises:
            ValueError: as the class and ``load_with_engine`` do.
        """
        model = load_with_engine(path, engine)
        if isinstance(model, Exported):
            if device not in ("auto", "cpu"):
                raise ValueError(f"device is {device!r}; exported networks run on the CPU here")
            device = "cpu"
        return cls(model, device=device, **options)

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
        pixels = self._steps.prepare(as_picture(image))
        with torch.inference_mode():
            return self._steps.predict([pixels])[0]

    def predict_batch(self, images: Sequence[Picture]) -> list[dict[str, Any]]:
        """Predict several images; those of one shape pass the network together.

        Args:
            images: as for a single one; they may differ in size.

        Returns:
            The prediction of each image: that of the image alone, up to rounding.

        Raises:
            ValueError: naming the first image that cannot be read.
        """
        results = []
        for outcome in self.run(images, as_picture, batch_size=max(1, len(images))):
            if outcome.error is not None:
                raise outcome.error
            results.append(outcome.result or {})
        return results

    def stream(self, images: Iterable[Picture], *, batch_size: int = 1) -> Iterator[dict[str, Any]]:
        """Yield the prediction of each image, in order; memory does not grow with their number.

        The next images are read in the background.

        Args:
            images: as for a single one; any iterable, such as a generator.
            batch_size: most images to predict at once.

        Yields:
            ``{"image": name}`` with the prediction, or ``{"image", "error"}``.
        """
        for outcome in self.run(images, as_picture, batch_size=batch_size):
            image = outcome.item
            name = str(image) if isinstance(image, str | Path) else "array"
            yield {"image": name} | (outcome.result or {"error": fault(name, outcome.error)})

    def run(
        self,
        items: Iterable[T],
        read: Callable[[T], Image.Image],
        *,
        batch_size: int | None = None,
        keep_images: bool = False,
    ) -> Iterator[Outcome[T]]:
        """Yield what becomes of each item; see :func:`rmt.tools.stream.predict_in_order`.

        Without a ``batch_size`` it is the task's.
        """
        size = self.task.batch_size if batch_size is None else batch_size
        return predict_in_order(items, read, self._steps, batch_size=size, keep_images=keep_images)


class Embedder(Predictor):
    """A model as a feature extractor: one image in, ``{"embedding": (C,) float32}`` out.

    The embedding is what a classifier's last layer gets, and the mean over the image of the last
    map of a detector's or segmenter's backbone. Arguments are those of :class:`Predictor`.
    """

    def _of_task(self, options: Any) -> BatchPredictor:
        return self.task.embedder(self.model, options)


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
    annotations: str | Path | None = None,
    annotations_format: str = "coco",
    engine: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Predict images and videos; with ``out``, draw the predictions on them.

    Args:
        sources: files of images and videos, folders and glob patterns of images, ``-`` for an image
            on standard input.
        checkpoint: as ``from_checkpoint`` takes it; None takes :data:`DEFAULT_WEIGHTS`.
        out: folder for the drawn images (and label maps of a segmenter); not one that holds
            images to predict.
        annotations: folder for a data set of the images and a detector's objects, to be corrected
            in an annotation tool.
        annotations_format: of this data set: ``coco``, ``yolo`` or ``voc``.
        engine: what runs the network, likewise.
        device: where to run.
        batch_size: most images to predict at once; None takes the task's.
        **options: of the model's task, as :class:`Predictor` takes them.

    Yields:
        The JSON record of each image, in order, and of each frame of a video, with ``frame`` and
        ``seconds``; ``{"image", "error"}`` for one that cannot be read, predicted or saved.

    Raises:
        ValueError: if there is no image, PyAV is missing for a video, ``out`` is a folder of the
            images, ``annotations`` is not empty or not for this model, or ``batch_size`` is not
            positive.
    """
    paths = find_files([*sources])
    folder, data_set = (None if own is None else Path(own) for own in (out, annotations))
    check_folders(paths, drawings=folder, annotations=data_set)
    predictor = Predictor.from_checkpoint(
        named_weights(checkpoint), engine=engine, device=device, **options
    )
    outcomes = predictor.run(
        open_sources(paths),
        lambda source: source.read(),
        batch_size=batch_size,
        keep_images=folder is not None,
    )
    model = predictor.model
    with Outputs(model, drawings=folder, annotations=data_set, to=annotations_format) as outputs:
        for outcome in outcomes:
            source, error = outcome.item, outcome.error
            record = {"image": str(source.path)} | source.about
            if outcome.result is not None:
                try:
                    record |= outputs.add(source, outcome.image, outcome.result)
                except FAULTS as caught:
                    error = caught
            yield record if error is None else record | {"error": fault(source.path, error)}


def named_weights(checkpoint: str | Path | None) -> str | Path:
    """Return the checkpoint that was named, or that of this package, and say so."""
    if checkpoint is None:
        log.warning(
            "no --checkpoint is given: using %s, which comes with this package", DEFAULT_WEIGHTS
        )
        return DEFAULT_WEIGHTS
    return checkpoint


def fault(name: object, error: Exception | None) -> str:
    """Return what a record says about an image without a prediction."""
    if isinstance(error, ValueError | OSError):
        return str(error)  # it names the file
    return f"{name} failed: {type(error).__name__}: {error}"  # such as a lack of memory


def describe(record: dict[str, Any]) -> str:
    """Return a record of :func:`predict_files` as one readable line.

    Names of files and classes cannot do anything to the terminal in it.
    """
    return printable(_line(record), limit=4000)


def _line(record: dict[str, Any]) -> str:
    name = record["image"]
    if "frame" in record:
        name += f" frame {record['frame']}"
    if "error" in record:
        return f"{name}  ERROR {record['error']}"
    if "features" in record:
        return f"{name}  {record['features']} features"
    if "top" in record:
        best = "  ".join(f"{top['name']} {100 * top['score']:.1f} %" for top in record["top"])
        return f"{name}  {best or 'none'}"
    if "detections" in record:
        count = Counter(found["name"] for found in record["detections"])
        listed = ", ".join(f"{n} {kind}" for kind, n in count.most_common())
        return f"{name}  {len(record['detections'])} objects: {listed or 'none'}"
    areas = sorted(record["classes"].items(), key=lambda item: -item[1]["share"])
    return f"{name}  " + ", ".join(f"{kind} {100 * c['share']:.1f} %" for kind, c in areas[:5])
