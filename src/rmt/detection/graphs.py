"""Detectors as graphs, and how their exports compare.

RetinaNet is one graph, suppression included. The number of regions of a two-stage detector differs
from image to image: its dense part and its heads are graphs, and the steps between them (proposals,
RoIAlign, suppression, pasting) run in torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rmt.detection.boxes import nms_by_class
from rmt.detection.coco_eval import average_precision
from rmt.detection.detector import Detector
from rmt.detection.metrics import as_coco, of_kind
from rmt.detection.predict import SHOWN_SCORE, label_names
from rmt.detection.rcnn import RCNN
from rmt.detection.retinanet import RetinaNet
from rmt.detection.roi import BOX_SIZE, MASK_SIZE, roi_features
from rmt.detection.transform import MEAN, STD
from rmt.modeling.graphs import Graph, Outputs

# Candidates of the image that an export of RetinaNet is checked on.
_CHECKED = 2000
# Boxes of two runtimes are the same object if they differ by less, in pixels; so are scores.
_SAME_BOX, _SAME_SCORE = 0.1, 1e-3


class OneGraph(nn.Module):
    """RetinaNet from a canvas to detections, including suppression, traceable as a whole.

    Args:
        detector: in eval mode.
    """

    def __init__(self, detector: RetinaNet) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, size: Tensor, threshold: Tensor) -> Outputs:
        """Detect objects in one image.

        Args:
            images: (1, 3, H, W), normalised, zero-padded on the right and at the bottom.
            size: (2,), height and width without the padding.
            threshold: (), detections must score above it.

        Returns:
            Boxes (n, 4) in pixels of ``images``, scores (n,) and labels (n,), best first.
        """
        model = self.detector
        maps = model.neck(model.backbone(images))
        boxes, scores = (each[0] for each in model.candidates(maps, size[None]))
        rows, labels = (scores > threshold).nonzero(as_tuple=True)
        boxes, scores = boxes[rows], scores[rows, labels]
        # torchvision tells whoever traces it that at least two boxes are kept. So two are added
        # that overlap with nothing and score lowest, and taken away again.
        keep = nms_by_class(
            torch.cat([boxes, boxes.new_zeros(2, 4)]),
            torch.cat([scores, scores.new_full((2,), -1)]),
            torch.cat([labels, torch.arange(2)]),
            iou=model.iou_threshold,
        )[:-2][: model.max_detections]
        return boxes[keep], scores[keep], labels[keep]


class _Dense(nn.Module):
    """Images to the maps of the pyramid, and logits and deltas of the proposal network."""

    def __init__(self, detector: RCNN) -> None:
        super().__init__()
        self.backbone, self.neck, self.rpn = detector.backbone, detector.neck, detector.rpn

    def forward(self, images: Tensor) -> Outputs:
        maps = self.neck(self.backbone(images))
        logits, deltas = self.rpn(maps)
        return (*maps, *logits, *deltas)


def graphs(model: Detector, size: tuple[int, int]) -> dict[str, Graph]:
    """Return RetinaNet as one graph, or a two-stage detector as several.

    Args:
        model: in eval mode.
        size: of the canvas (h, w), multiples of 32.
    """
    if isinstance(model, RetinaNet):
        return {
            "model": Graph(
                module=OneGraph(model),
                inputs=("images", "size", "threshold"),
                outputs=("boxes", "scores", "labels"),
                examples=partial(_candidates_of, model),
                difference=_share_missing,
                tolerance=0.02,
            )
        }
    assert isinstance(model, RCNN)
    levels = range(5)
    names = tuple(f"{kind}_{i}" for kind in ("map", "logits", "deltas") for i in levels)
    found = {"dense": Graph(module=_Dense(model), inputs=("images",), outputs=names)}
    for i in range(len(model.stages)):
        for heads, side, name, outputs in (
            (model.box_heads, BOX_SIZE, "box_head", ("logits", "deltas")),
            (model.mask_heads, MASK_SIZE, "mask_head", ("logits",)),
        ):
            found[f"{name}_{i}"] = Graph(
                module=heads[i],
                inputs=("features",),
                outputs=outputs,
                examples=partial(_features_of, model, side),
                regions=True,
            )
    return found


@torch.no_grad()
def _candidates_of(model: RetinaNet, images: Tensor) -> Outputs:
    """Return the first image, its size, and a threshold that leaves many candidates."""
    image, size = images[:1], torch.tensor(images.shape[2:]).float()
    _, scores = model.candidates(model.neck(model.backbone(image)), size[None])
    best = scores.flatten().topk(min(_CHECKED, scores.numel())).values
    return image, size, best[-1].clone()


@torch.no_grad()
def _features_of(model: RCNN, side: int, images: Tensor) -> Outputs:
    """Return the features of regions of several sizes in each image."""
    maps = model.neck(model.backbone(images))
    height, width = images.shape[2:]
    corners = torch.tensor([[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.3, 0.2, 0.9, 0.6]])
    boxes = corners * torch.tensor([width, height, width, height])
    rois = [torch.cat([torch.full((3, 1), float(i)), boxes], dim=1) for i in range(len(images))]
    return (roi_features(maps, torch.cat(rois), side),)


def _share_missing(found: Outputs, expected: Outputs) -> float:
    """Return the share of detections that the other side has not; equal scores in any order."""
    boxes, scores, labels = found
    free = torch.ones(len(scores), dtype=torch.bool)
    missing = 0
    for box, score, label in zip(*expected, strict=True):
        near = free & (labels == label) & ((scores - score).abs() < _SAME_SCORE)
        near &= ((boxes - box).abs() < _SAME_BOX).all(dim=1)
        if near.any():
            free[near.nonzero()[0, 0]] = False
        else:
            missing += 1
    return max(missing, int(free.sum())) / max(1, len(expected[1]), len(scores))


def size_of(model: Detector) -> tuple[int, int]:
    """Return the canvas (h, w) of a landscape photo at the model's sizes."""
    transform = model.transform
    height, width = (-(-side // 32) * 32 for side in (transform.min_size, transform.max_size))
    return height, width


def transforms(model: Detector) -> dict[str, Any]:
    """Return what turns an image into the network's input."""
    return {
        "mean": [level / 255 for level in MEAN],
        "std": [level / 255 for level in STD],
        "interpolation": "bilinear",
        "min_size": model.transform.min_size,
        "max_size": model.transform.max_size,
    }


@torch.no_grad()
def agreement(
    model: Detector, exported: Detector, images: Sequence[Image.Image]
) -> tuple[str, float]:
    """Return the box AP of the export, with what the model finds as the truth.

    Raises:
        ValueError: if the model finds nothing that counts.
    """
    categories = tuple(range(1, model.num_classes + 1))
    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for i, image in enumerate(images):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        (seen,) = model([pixels], score_threshold=SHOWN_SCORE)
        truth += as_coco(seen, i, categories)
        found += as_coco(exported([pixels])[0], i, categories)
    if not truth:
        raise ValueError(
            f"the model finds no object that scores above {SHOWN_SCORE} in the held-out images: "
            "give images with objects to calibrate and compare on"
        )
    areas = {i: own["bbox"][2] * own["bbox"][3] for i, own in enumerate(truth)}
    names = label_names(model)
    data = {
        "images": [
            {"id": i, "width": im.width, "height": im.height} for i, im in enumerate(images)
        ],
        "annotations": [
            own | {"area": areas[i], "iscrowd": 0} for i, own in enumerate(of_kind(truth, "box"))
        ],
        "categories": [{"id": i, "name": name} for i, name in zip(categories, names, strict=True)],
    }
    return "box AP agreement", average_precision(data, of_kind(found, "box"), "box")[0]["AP"]
