"""Detectors as ONNX files: RetinaNet as one graph, the others as several with a runner.

The number of regions of a two-stage detector differs from image to image. So its dense part and its
heads are exported as graphs, and the steps between them (proposals, RoIAlign, suppression, pasting)
run in torch: :func:`load_parts` returns an ordinary detector whose networks are onnxruntime
sessions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmt.detection import from_config
from rmt.detection.boxes import multiclass_nms
from rmt.detection.detector import SCORE_THRESHOLD
from rmt.detection.rcnn import RCNN
from rmt.detection.retinanet import RetinaNet
from rmt.detection.roi import BOX_SIZE, MASK_SIZE
from rmt.detection.transform import normalise
from rmt.files import write_json
from rmt.modeling.saved import Description
from rmt.untrusted import Field, read_json_file

_INPUT, _DENSE, _CONFIG = "image", "dense.onnx", "config.json"


class OneGraph(nn.Module):
    """RetinaNet from a resized image to detections, including suppression, traceable as a whole.

    Args:
        detector: in eval mode.
        score_threshold: detections must score above it.
    """

    def __init__(self, detector: RetinaNet, *, score_threshold: float = SCORE_THRESHOLD) -> None:
        super().__init__()
        self.detector = detector
        self.score_threshold = score_threshold

    def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect objects in one image.

        Args:
            image: (1, 3, H, W), RGB floats in 0..1, H and W multiples of 32.
            size: (2,), height and width without the padding on the right and at the bottom.

        Returns:
            Boxes (n, 4) in pixels of ``image``, scores (n,) and labels (n,), best first.
        """
        model, canvas = self.detector, (image.shape[2], image.shape[3])
        y, x = (torch.arange(side) for side in canvas)
        inside = (y[:, None] < size[0]) & (x < size[1])
        pixels = normalise(image[0], canvas) * inside
        maps = model.neck(model.backbone(pixels[None]))
        boxes, scores = model.candidates(maps, size[None])
        return multiclass_nms(
            boxes[0],
            scores[0],
            threshold=self.score_threshold,
            iou=model.iou_threshold,
            limit=model.max_detections,
        )


def export_retinanet(
    detector: RetinaNet,
    path: str | Path,
    *,
    size: tuple[int, int],
    score_threshold: float = SCORE_THRESHOLD,
) -> Path:
    """Write RetinaNet for images of one size as a single ONNX file that includes the suppression.

    Inputs and outputs are those of :class:`OneGraph`, named ``image``, ``size``, ``boxes``,
    ``scores`` and ``labels``; without ``size`` the image is taken to have no padding. The IoU
    threshold and the limit of detections are the detector's.

    Args:
        detector: a RetinaNet.
        path: ends in ``.onnx``.
        size: height and width of the canvas that images are padded to, multiples of 32.
        score_threshold: detections must score above it.

    Returns:
        ``path``.

    Raises:
        ValueError: if a side is not a multiple of 32.
    """
    _check_size(size)
    unpadded = torch.tensor(size)
    names = (["image", "size"], ["boxes", "scores", "labels"])
    with _evaluating(detector):
        graph = OneGraph(detector, score_threshold=score_threshold)
        program = _export(graph, [torch.rand(1, 3, *size), unpadded], names=names)
    _set_default(program, "size", unpadded)
    program.save(path)
    return Path(path)


def export_parts(detector: RCNN, folder: str | Path, *, size: tuple[int, int]) -> Path:
    """Write a two-stage detector as ``dense.onnx``, the heads of each stage, and ``config.json``.

    Args:
        detector: a Mask R-CNN or Cascade Mask R-CNN.
        folder: created if it does not exist.
        size: height and width of the canvas that images are padded to, multiples of 32.

    Returns:
        ``folder``, for :func:`load_parts`.

    Raises:
        ValueError: if a side is not a multiple of 32.
    """
    _check_size(size)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    many = {0: torch.export.Dim("regions", min=1, max=100_000)}
    with _evaluating(detector):
        _export(_Dense(detector), [torch.rand(1, 3, *size)]).save(folder / _DENSE)
        for i in range(len(detector.stages)):
            for heads, side, name in _heads(detector):
                features = torch.rand(3, 256, side, side)
                program = _export(heads[i], [features], dynamic=many)
                program.save(folder / name.format(i))
    described = detector.describe() | {"canvas": list(size)}
    write_json(folder / _CONFIG, described)
    return folder


def load_parts(folder: str | Path) -> RCNN:
    """Return a detector whose networks are the ONNX files of :func:`export_parts`.

    It is called as any other detector, for inference only. An image whose canvas is not the
    exported one raises ``ValueError``.

    Raises:
        ValueError: if ``config.json`` does not describe a two-stage detector.
    """
    folder = Path(folder)
    content = read_json_file(folder / _CONFIG)
    described = Description.read(content, str(folder / _CONFIG))
    sides = Field.of(content, str(folder / _CONFIG))["canvas"].items()
    canvas = tuple(side.whole(least=32, most=16384) for side in sides)
    with torch.device("meta"):
        built = from_config(described.config)
    if not isinstance(built, RCNN) or len(canvas) != 2:
        raise ValueError(f"{folder / _CONFIG} is not of a two-stage detector with a canvas")
    model: Any = built  # its networks are replaced by sessions
    model.backbone, model.neck = _Pixels(), DenseSession(folder / _DENSE, canvas)
    model.rpn.forward = lambda maps: (maps.logits, maps.deltas)
    for heads, _, name in _heads(model):
        for i in range(len(heads)):
            heads[i] = Session(folder / name.format(i))
    model.info = described.info
    return model.eval()


class Session(nn.Module):
    """An ONNX file as a module: one tensor in, one or several out.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        import onnxruntime

        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def forward(self, x: Tensor) -> Any:
        """Run the graph."""
        outputs = self.session.run(None, {_INPUT: x.contiguous().numpy()})
        tensors = tuple(torch.from_numpy(output) for output in outputs)
        return tensors[0] if len(tensors) == 1 else tensors


class DenseSession(Session):
    """The dense part: normalised pixels to :class:`Maps`, image by image.

    Args:
        path: of the file.
        canvas: height and width of its input.
    """

    def __init__(self, path: Path, canvas: tuple[int, int]) -> None:
        super().__init__(path)
        self.canvas = canvas

    def forward(self, x: Tensor) -> Maps:
        """Run the graph on each image of (B, 3, H, W)."""
        if tuple(x.shape[2:]) != self.canvas:
            raise ValueError(
                f"the image's canvas is {tuple(x.shape[2:])}, the exported one {self.canvas}; "
                "export for that canvas, or resize the image"
            )
        images = [super(DenseSession, self).forward(image) for image in x.split(1)]
        return Maps([torch.cat(own) for own in zip(*images, strict=True)])


class Maps(list):
    """The maps of the pyramid, with the outputs of the proposal network as attributes."""

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        super().__init__(outputs[:5])
        self.logits, self.deltas = list(outputs[5:10]), list(outputs[10:])


class _Pixels(nn.Module):
    """In place of the backbone, which is part of the dense graph: pixels pass through."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype_and_device = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels


class _Dense(nn.Module):
    """Normalised pixels to the maps of the pyramid, and logits and deltas of the RPN."""

    def __init__(self, detector: RCNN) -> None:
        super().__init__()
        self.backbone, self.neck, self.rpn = detector.backbone, detector.neck, detector.rpn

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        maps = self.neck(self.backbone(pixels))
        logits, deltas = self.rpn(maps)
        return (*maps, *logits, *deltas)


def _heads(detector: RCNN) -> list[tuple[nn.ModuleList, int, str]]:
    """Return the heads of all stages, the size of their input, and the names of their files."""
    return [
        (detector.box_heads, BOX_SIZE, "box_head_{}.onnx"),
        (detector.mask_heads, MASK_SIZE, "mask_head_{}.onnx"),
    ]


def _export(
    module: nn.Module,
    inputs: list[Tensor],
    *,
    names: tuple[list[str], list[str] | None] = ([_INPUT], None),
    dynamic: dict[int, Any] | None = None,
) -> torch.onnx.ONNXProgram:
    program = torch.onnx.export(
        module.eval(),
        tuple(inputs),
        dynamo=True,
        input_names=names[0],
        output_names=names[1],
        dynamic_shapes=None if dynamic is None else (dynamic,),
        verbose=False,
    )
    assert program is not None
    return program


def _set_default(program: torch.onnx.ONNXProgram, name: str, value: Tensor) -> None:
    """Give an input of a graph a default value, so that a caller may leave it out."""
    from onnxscript import ir

    given = next(own for own in program.model.graph.inputs if own.name == name)
    given.const_value = ir.tensor(value.numpy(), name=name)
    program.model.graph.register_initializer(given)


@contextmanager
def _evaluating(detector: nn.Module) -> Iterator[None]:
    was_training = detector.training
    detector.eval()
    try:
        yield
    finally:
        detector.train(was_training)


def _check_size(size: tuple[int, int]) -> None:
    if any(side < 32 or side % 32 for side in size):
        raise ValueError(f"size is {size}; both sides must be multiples of 32")
