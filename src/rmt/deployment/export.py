"""Models to files for other runtimes, each run and compared before it is called done."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rmt.data.folders import find_images
from rmt.data.images import read_image
from rmt.deployment.engines import FILE_ENGINES, LEAST_SIDE, Engine
from rmt.deployment.formats import FORMATS, INT8, Calibration
from rmt.deployment.metadata import Metadata
from rmt.deployment.photos import batches, photos
from rmt.files import digest_of_tensors, for_people, written_aside
from rmt.messages import did_you_mean
from rmt.modeling.graphs import Exports, Graph, Outputs
from rmt.modeling.pretrained import Pretrained
from rmt.task import Deployment, get_task
from rmt.weights.load import load

#: Most images that 8 bits are calibrated on, and that they are compared on.
MOST_CALIBRATION = 300
#: Fewest images for both.
LEAST_IMAGES = 10


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and how it compares.

    Attributes:
        path: of the file or folder.
        metadata: what it says of itself.
        differences: graph and shape of its first input -> largest difference to torch, as a share
            of the largest output (of detections: the share that only one of both finds).
        agreement: name -> percent, of an export in 8 bits with float32, on held-out images.
    """

    path: Path
    metadata: Metadata
    differences: dict[str, float] = field(default_factory=dict)
    agreement: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as ``rmt export --json`` writes them."""
        about = self.metadata
        return {
            "path": str(self.path),
            "task": about.model.task,
            "size": list(about.size),
            "batch": about.batch,
            "dynamic": about.dynamic,
            "int8": about.int8,
            "parts": list(about.parts),
            "differences": for_people(self.differences),
            "agreement": for_people(self.agreement),
        }

    def lines(self) -> list[str]:
        """Return what a reader wants to know."""
        shown = [
            f"{name}: differs from torch by {own:.1e}" for name, own in self.differences.items()
        ]
        shown += [f"{name} with float32: {own:.2f} %" for name, own in self.agreement.items()]
        return [*shown, str(self.path)]


def export(
    source: Pretrained | str | Path,
    destination: str | Path,
    *,
    format: str,
    img_size: int | Sequence[int] | None = None,
    batch_size: int = 1,
    dynamic: bool = False,
    int8: bool = False,
    calibration: str | Path | None = None,
    check: str | Path | None = None,
    force: bool = False,
) -> ExportReport:
    """Write the fused form of a model for another runtime, run it, and compare it with torch.

    A classifier becomes one graph, from normalised images (B, C, H, W) to logits (B, K); a
    segmenter one to logits (B, K, ⌈H/4⌉, ⌈W/4⌉); a RetinaNet one from a padded image to boxes,
    scores and labels; a two-stage detector a folder of graphs. Nothing stands at ``destination``
    before all of it has been compared.

    Args:
        source: a model, or anything :func:`rmt.load` reads.
        destination: a new ``.onnx``, ``.xml`` or ``.pt2`` file, or for two-stage detectors a
            folder; the suffix may be left out.
        format: ``onnx``, ``openvino``, ``torch-export`` or ``aoti``.
        img_size: side or height and width of the images; None takes that of the weights. Detectors
            pad images to it.
        batch_size: number of images at once; 1 for detectors.
        dynamic: take images of all sizes from 64 pixels on, and any number of them.
        int8: weights and activations in 8 bits (``openvino``, ``onnx``).
        calibration: folder of images for it; every third is held out, to compare on.
        check: folder of images to compare on; None takes photos that come with scikit-learn and
            Matplotlib.
        force: keep an export in 8 bits that agrees too little.

    Returns:
        What was compared, with the path.

    Raises:
        ValueError: if the format is unknown, its library is missing, something is at
            ``destination``, the size or batch does not fit the model, ``int8`` has no images or
            agrees too little, or the export computes something else than the model.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}{did_you_mean(format, FORMATS)}")
    _check_int8(format, int8=int8, calibration=calibration)
    model = _plain(source)
    metadata = _plan(model, img_size, batch_size, dynamic=dynamic, int8=int8)
    path = _path(Path(destination), FILE_ENGINES[format].suffix, len(metadata.parts))
    graphs, fused = get_task(model.task).deployment().graphs, model.fuse()
    report = ExportReport(path, metadata)
    seen, held_out = _calibration_images(calibration) if calibration else ([], [])
    with written_aside(path) as aside:
        engines = _write(graphs(fused, metadata.size), aside, format, metadata, seen)
        if int8:
            report.agreement.update(_agreement(fused, engines, metadata, held_out, force=force))
        else:
            originals = graphs(model, metadata.size)
            report.differences.update(_compare(originals, engines, metadata, photos(check)))
    return report


def _plain(source: Pretrained | str | Path) -> Pretrained:
    """Return a model on the CPU, in float32 and eval mode; one that is given stays as it is."""
    model = copy.deepcopy(source) if isinstance(source, Pretrained) else load(source)
    return model.cpu().float().eval()


def _plan(
    model: Pretrained,
    img_size: int | Sequence[int] | None,
    batch_size: int,
    *,
    dynamic: bool,
    int8: bool,
) -> Metadata:
    """Return what the export will say of itself.

    Raises:
        ValueError: for a size or batch that the model's task does not have.
    """
    deployment: Deployment[Any] = get_task(model.task).deployment()
    size = _size(deployment, model, img_size)
    _check_request(deployment, model, size, batch_size, dynamic=dynamic)
    return Metadata.of(
        model,
        parts=tuple(deployment.graphs(model, size)),
        size=size,
        batch=batch_size,
        dynamic=dynamic,
        int8=int8,
        digest=digest_of_tensors(model.state_dict()),
    )


def _write(
    graphs: dict[str, Graph],
    path: Path,
    format: str,
    metadata: Metadata,
    seen: Sequence[Image.Image],
) -> dict[str, Engine]:
    """Write all graphs, one as the file and several into the folder, and open them."""
    kind = FILE_ENGINES[format]
    batch = 2 if metadata.dynamic else metadata.batch  # one image would make it a constant
    (images, *_) = batches(photos(None), metadata.size, batch, dict(metadata.transforms))
    engines: dict[str, Engine] = {}
    for name, graph in graphs.items():
        file = path if len(graphs) == 1 else path / f"{name}{kind.suffix}"
        file.parent.mkdir(exist_ok=True)
        calibration: Calibration = [
            graph.examples(own)
            for own in batches(seen, metadata.size, metadata.batch, dict(metadata.transforms))
        ]
        FORMATS[format](
            graph,
            file,
            metadata.text(),
            images=images,
            dynamic=metadata.dynamic,
            calibration=[] if graph.regions else calibration,
        )
        engines[name] = kind(file, regions=graph.regions)
    return engines


@torch.no_grad()
def _compare(
    graphs: dict[str, Graph],
    engines: dict[str, Engine],
    metadata: Metadata,
    images: Sequence[Image.Image],
) -> dict[str, float]:
    """Run the model that is not fused and its export on photos; return the differences.

    Raises:
        ValueError: if one is above the graph's tolerance.
    """
    differences: dict[str, float] = {}
    for size, batch in _shapes(metadata):
        for pixels in batches(images, size, batch, dict(metadata.transforms)):
            for name, graph in graphs.items():
                inputs = graph.examples(pixels)
                expected = _as_tuple(graph.module(*inputs))
                difference = graph.difference(engines[name](*inputs), expected)
                key = f"{name} {'×'.join(map(str, inputs[0].shape))}"
                differences[key] = max(difference, differences.get(key, 0.0))
                if not difference <= graph.tolerance:
                    raise ValueError(
                        f"the export was not kept: on {key} it differs from the model by "
                        f"{difference:.2g} of the largest output, where {graph.tolerance:.2g} is "
                        "rounding. Another format may be right; please report this one"
                    )
    return differences


def _agreement(
    fused: Pretrained,
    engines: dict[str, Engine],
    metadata: Metadata,
    images: Sequence[Image.Image],
    *,
    force: bool,
) -> dict[str, float]:
    """Return how far an export in 8 bits agrees with float32, in percent.

    Raises:
        ValueError: if it is too little, unless forced.
    """
    deployment = get_task(fused.task).deployment()
    exports = Exports(engines={**engines}, size=metadata.size, any_size=metadata.dynamic)
    deployment.set_size(fused, metadata.size, any_size=metadata.dynamic)
    found = deployment.exported(metadata.model, exports)
    name, percent = deployment.agreement(fused, found, images)
    if percent < deployment.least_agreement and not force:
        raise ValueError(
            f"the export in 8 bits was not kept: {name} with float32 is {percent:.1f} %, below "
            f"{deployment.least_agreement:g} %. Give more images like those that you will predict, "
            "or try the other of openvino and onnx; force (--force) keeps it"
        )
    return {name: percent}


def _shapes(metadata: Metadata) -> list[tuple[tuple[int, int], int]]:
    """Return the sizes and batch sizes to run: two of each if both are free."""
    (height, width), batch = metadata.size, metadata.batch
    if not metadata.dynamic:
        return [(metadata.size, batch)]
    other = max(LEAST_SIDE, height * 3 // 4 + 1), max(LEAST_SIDE, width * 5 // 4 + 3)
    return [(metadata.size, 1), (other, 3)]


def _as_tuple(outputs: Any) -> Outputs:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _size(
    deployment: Deployment[Any], model: Pretrained, asked: int | Sequence[int] | None
) -> tuple[int, int]:
    if asked is None:
        return deployment.size_of(model)
    sides = [asked, asked] if isinstance(asked, int) else [*asked]
    if len(sides) == 1:
        sides *= 2
    if len(sides) != 2:
        raise ValueError(f"img_size is {tuple(sides)}; give one side, or height and width")
    return sides[0], sides[1]


def _check_request(
    deployment: Deployment[Any],
    model: Pretrained,
    size: tuple[int, int],
    batch: int,
    *,
    dynamic: bool,
) -> None:
    """Raise ``ValueError`` for a size or batch that the model's task does not have."""
    least = max(LEAST_SIDE if dynamic else 1, deployment.multiple)
    if any(side < least or side % deployment.multiple for side in size):
        wanted = f"multiples of {deployment.multiple}" if deployment.multiple > 1 else "sides"
        raise ValueError(f"img_size is {size[0]}×{size[1]}; expected {wanted} from {least} on")
    if batch < 1:
        raise ValueError(f"batch_size is {batch}; it must be at least 1")
    if not deployment.any_size and (dynamic or batch > 1):
        asked = "dynamic" if dynamic else f"batch_size {batch}"
        raise ValueError(
            f"{asked} is not for {model.task}: a detector is exported for one image at a time, on "
            "a canvas that images of all sizes are padded to (--img-size H W)"
        )


def _check_int8(format: str, *, int8: bool, calibration: str | Path | None) -> None:
    if int8 and format not in INT8:
        raise ValueError(f"{format} has no 8-bit form here; choose openvino (or onnx) for int8")
    if int8 and calibration is None:
        raise ValueError(
            "int8 needs images to measure activations on: name a folder of about 300 images like "
            "those that you will predict (--calibration DIR); no labels are needed"
        )
    if calibration is not None and not int8:
        raise ValueError("calibration goes with int8; images to compare on are named by check")


def _calibration_images(
    folder: str | Path,
) -> tuple[list[Image.Image], list[Image.Image]]:
    """Return images to calibrate on, and every third, held out to compare on.

    Raises:
        ValueError: if there are too few.
    """
    paths = find_images([folder])
    if len(paths) < LEAST_IMAGES:
        raise ValueError(
            f"{folder} holds {len(paths)} images; calibrating and comparing takes at least "
            f"{LEAST_IMAGES}, better 300"
        )
    step = max(1, len(paths) // (MOST_CALIBRATION * 3 // 2))
    images = [read_image(path) for path in paths[::step]]
    held_out = images[2::3]
    return [own for i, own in enumerate(images) if i % 3 != 2], held_out


def _path(destination: Path, suffix: str, parts: int) -> Path:
    """Return where to write.

    Raises:
        ValueError: for a suffix of another format.
    """
    if parts > 1:
        if destination.suffix:
            raise ValueError(
                f"{destination}: this model is exported as {parts} files; name a folder"
            )
        return destination
    if destination.suffix not in ("", suffix):
        raise ValueError(f"{destination} must end in {suffix} in this format")
    return destination.with_suffix(suffix)
