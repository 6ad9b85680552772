"""Detectors as ONNX files: RetinaNet as one graph, the others as parts with a runner.

A two-stage detector's regions have no number that a graph could know beforehand, so its dense part
and its heads are exported and the steps between them (proposals, RoIAlign, suppression, pasting)
run here, on torch: :func:`load_parts` returns a detector like any other, whose networks are
onnxruntime sessions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rmt.detection import from_config
from rmt.detection.boxes import nms_by_class
from rmt.detection.rcnn import RCNN
from rmt.detection.retinanet import RetinaNet
from rmt.detection.roi import BOX_SIZE, MASK_SIZE
from rmt.detection.transform import normalise

_INPUT, _DENSE, _CONFIG = "image", "dense.onnx", "config.json"
# Pairs of anchor and class that enter the suppression of the exported graph.
_CANDIDATES = 5000


class OneGraph(nn.Module):
    """RetinaNet from a resized image to detections, suppression included, traceable as a whole.

    It equals the detector as long as at most 5,000 pairs of anchor and class are above the
    score threshold.

    Args:
        detector: in eval mode.
    """

    def __init__(self, detector: RetinaNet) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect objects in one image.

        Args:
            image: (1, 3, H, W), RGB floats in 0..1, H and W multiples of 32.

        Returns:
            Boxes (n, 4) in pixels of ``image``, scores (n,) and labels (n,), best first.
        """
        model, size = self.detector, (image.shape[2], image.shape[3])
        maps = model.neck(model.backbone(normalise(image[0], size)[None]))
        boxes, scores = model.candidates(maps, torch.tensor([size]))
        classes = scores.shape[2]
        best, index = scores[0].flatten().topk(min(_CANDIDATES, scores[0].numel()))
        boxes, labels = boxes[0][index // classes], index % classes
        keep = nms_by_class(boxes, best, labels, iou=model.iou_threshold)
        keep = keep[best[keep] > model.score_threshold][: model.max_detections]
        return boxes[keep], best[keep], labels[keep]


def export_retinanet(detector: RetinaNet, path: str | Path, *, size: tuple[int, int]) -> Path:
    """Write RetinaNet for images of one size as a single ONNX file with the suppression inside.

    Its input and outputs are those of :class:`OneGraph`, named ``image``, ``boxes``, ``scores``
    and ``labels``.

    Args:
        detector: put into eval mode.
        path: ends in ``.onnx``.
        size: height and width of the image, multiples of 32.

    Raises:
        ValueError: if a side is no multiple of 32.
    """
    _check_size(size)
    names = ["boxes", "scores", "labels"]
    return _write(OneGraph(detector), [torch.rand(1, 3, *size)], Path(path), outputs=names)


def export_parts(detector: RCNN, folder: str | Path, *, size: tuple[int, int]) -> Path:
    """Write a two-stage detector as ``dense.onnx``, heads of each stage, and ``config.json``.

    Args:
        detector: put into eval mode.
        folder: made if absent.
        size: height and width of the canvas that images are padded to, multiples of 32.

    Returns:
        ``folder``, for :func:`load_parts`.

    Raises:
        ValueError: if a side is no multiple of 32.
    """
    _check_size(size)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(_Dense(detector), [torch.rand(1, 3, *size)], folder / _DENSE)
    many = {0: torch.export.Dim("regions", min=1, max=100_000)}
    for i in range(len(detector.stages)):
        features = torch.rand(3, 256, BOX_SIZE, BOX_SIZE)
        _write(detector.box_heads[i], [features], folder / f"box_head_{i}.onnx", dynamic=many)
        features = torch.rand(3, 256, MASK_SIZE, MASK_SIZE)
        _write(detector.mask_heads[i], [features], folder / f"mask_head_{i}.onnx", dynamic=many)
    described = detector.describe() | {"canvas": list(size)}
    (folder / _CONFIG).write_text(json.dumps(described, indent=2))
    return folder


def load_parts(folder: str | Path) -> RCNN:
    """Return a detector whose networks are the ONNX files of :func:`export_parts`.

    It is called like any other, for inference; an image whose canvas is another than the exported
    one raises ``ValueError``.
    """
    folder = Path(folder)
    described = json.loads((folder / _CONFIG).read_text())
    with torch.device("meta"):
        model = from_config(described)
    assert isinstance(model, RCNN)
    dense = Session(folder / _DENSE, tuple(described["canvas"]))
    model.backbone, model.neck = _Pixels(), dense  # type: ignore[assignment]
    model.rpn.forward = lambda maps: (maps.logits, maps.deltas)  # type: ignore[method-assign]
    for heads, name in ((model.box_heads, "box_head"), (model.mask_heads, "mask_head")):
        for i in range(len(heads)):
            heads[i] = Session(folder / f"{name}_{i}.onnx")
    model.info = {key: value for key, value in described.items() if key == "label_names"}
    return model.eval()


class Maps(list):
    """The pyramid's maps, with the proposal network's answer to them."""

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        super().__init__(outputs[:5])
        self.logits, self.deltas = list(outputs[5:10]), list(outputs[10:])


class Session(nn.Module):
    """An ONNX file as a module.

    Args:
        path: of the file.
        canvas: the only height and width of its image, for a dense part.
    """

    def __init__(self, path: Path, canvas: tuple[int, int] | None = None) -> None:
        super().__init__()
        import onnxruntime

        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.canvas = canvas

    def forward(self, x: Tensor) -> Any:
        """Run the graph; a dense part gives :class:`Maps`, a head its one or two tensors."""
        if self.canvas and tuple(x.shape[2:]) != self.canvas:
            raise ValueError(
                f"the image's canvas is {tuple(x.shape[2:])}, the exported one {self.canvas}; "
                "export another, or resize the image"
            )
        outputs = [torch.from_numpy(y) for y in self._run(x)]
        if self.canvas:
            return Maps(outputs)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _run(self, x: Tensor) -> list:
        return list(self.session.run(None, {_INPUT: x.contiguous().numpy()}))


class _Pixels(nn.Module):
    """In place of the backbone, which is part of the dense graph."""

    def __init__(self) -> None:
        super().__init__()
        self.dtype_and_device = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels


class _Dense(nn.Module):
    """Normalised pixels to the pyramid's maps, and the proposal network's logits and deltas."""

    def __init__(self, detector: RCNN) -> None:
        super().__init__()
        self.backbone, self.neck, self.rpn = detector.backbone, detector.neck, detector.rpn

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        maps = self.neck(self.backbone(pixels))
        logits, deltas = self.rpn(maps)
        return (*maps, *logits, *deltas)


def _write(
    module: nn.Module,
    inputs: list[Tensor],
    path: Path,
    *,
    outputs: list[str] | None = None,
    dynamic: dict[int, Any] | None = None,
) -> Path:
    was_training = module.training
    module.eval()
    try:
        program = torch.onnx.export(
            module,
            tuple(inputs),
            dynamo=True,
            input_names=[_INPUT],
            output_names=outputs,
            dynamic_shapes=None if dynamic is None else (dynamic,),
            verbose=False,
        )
    finally:
        module.train(was_training)
    assert program is not None
    program.save(path)
    return path


def _check_size(size: tuple[int, int]) -> None:
    if any(side < 32 or side % 32 for side in size):
        raise ValueError(f"size is {size}; both sides must be multiples of 32")
