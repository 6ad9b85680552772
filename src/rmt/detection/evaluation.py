"""Report of a detector's evaluation: precision and recall, and the images with most mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.ops import box_area

from rmt.data.bad_samples import UNREADABLE
from rmt.data.plots import write_table
from rmt.detection.boxes import overlaps
from rmt.detection.datamodule import DetectionData
from rmt.detection.detector import Detections, Detector
from rmt.detection.metrics import as_coco, categories_of
from rmt.detection.plots import annotated, curves
from rmt.detection.predict import SHOWN_SCORE, draw_detections, label_names
from rmt.detection.rle import to_rle
from rmt.detection.samples import Samples

_IOU, _MOST_ROWS = 0.5, 8


@dataclass
class Counted:
    """The mistakes in one image, at a score from :data:`SHOWN_SCORE` on and an IoU from 0.5 on.

    Attributes:
        index: of the image in its split.
        objects: number of annotated ones.
        missed: annotated objects without a detection of their class.
        false: detections without an object of their class, except those inside a crowd or an object
            to be ignored.
        detections: as :func:`draw_detections` takes them.
    """

    index: int
    objects: int
    missed: int
    false: int
    detections: list[dict[str, Any]]


@torch.inference_mode()
def draw(model: Detector, data: DetectionData, folder: Path) -> dict[str, str]:
    """Write the plots and ``images.csv``; return file name -> what it shows.

    Args:
        model: in eval mode, of the data's classes.
        data: whose test images are predicted.
        folder: to write into.
    """
    samples = data.splits.evaluated
    categories, names = categories_of(model, samples), label_names(model)
    position = {own: i for i, own in enumerate(samples.ids)}
    found, counted = [], []
    for batch in data.eval_loader(samples):
        for image, image_id in batch:
            (own,) = model([image])
            found += as_coco(own, image_id, categories)
            index = position[image_id]
            counted.append(_count(own, samples, index, categories, names))
    counted.sort(key=lambda one: -(one.missed + one.false))
    read = samples.take(sorted(one.index for one in counted))
    curves(model, found, read).savefig(folder / "precision_recall.png", dpi=110)
    # At least one, so that there is something to see.
    worst = [one for one in counted if one.missed + one.false] or counted[:1]
    _sheet(model, samples, worst[:_MOST_ROWS]).savefig(folder / "worst.png", dpi=110)
    write_table(
        folder / "images.csv",
        [
            {
                "image": samples.name(one.index),
                "objects": one.objects,
                "missed": one.missed,
                "false": one.false,
            }
            for one in counted
        ],
    )
    limits = f"score {SHOWN_SCORE} and IoU {_IOU} or more"
    return {
        "precision_recall.png": "precision over recall of each class at IoU 0.5",
        "worst.png": f"the images with most missed objects and false detections ({limits})",
        "images.csv": f"every image with missed objects and false detections ({limits})",
    }


def _count(
    found: Detections,
    samples: Samples,
    index: int,
    categories: tuple[int, ...],
    names: list[str],
) -> Counted:
    shown = found["scores"] >= SHOWN_SCORE
    boxes, labels = found["boxes"][shown].cpu().float(), found["labels"][shown].cpu()
    entries = samples.objects.get(samples.ids[index], ())
    plain = [own for own in entries if not (own["iscrowd"] or own.get("ignore"))]
    rest = [own for own in entries if own not in plain]
    hits = _matched(boxes, labels, *_truth(plain, categories))
    false = ~hits & ~_inside(boxes, labels, *_truth(rest, categories))
    scores = found["scores"][shown].tolist()
    detections: list[dict[str, Any]] = [
        {"box": box, "score": score, "label": label, "name": names[label]}
        for box, score, label in zip(boxes.tolist(), scores, labels.tolist(), strict=True)
    ]
    if "masks" in found:
        codes = to_rle(found["masks"][shown].cpu().numpy())
        for entry, code in zip(detections, codes, strict=True):
            entry["mask"] = code
    missed = len(plain) - int(hits.sum())
    return Counted(index, len(plain), missed, int(false.sum()), detections)


def _truth(entries: list[dict[str, Any]], categories: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the boxes (N, 4) of annotations, and the model's labels of them (N,)."""
    boxes = torch.tensor([own["bbox"] for own in entries], dtype=torch.float32).view(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = [categories.index(own["category_id"]) for own in entries]
    return boxes, torch.tensor(labels, dtype=torch.long)


def _matched(boxes: Tensor, labels: Tensor, objects: Tensor, own: Tensor) -> Tensor:
    """Return which detections, the best first, take an object of their class of their own."""
    iou = overlaps(boxes, objects) * (labels[:, None] == own)
    hits = torch.zeros(len(boxes), dtype=torch.bool)
    for row in range(len(boxes)):
        if len(objects) and iou[row].max() >= _IOU:
            iou[:, iou[row].argmax()] = 0
            hits[row] = True
    return hits


def _inside(boxes: Tensor, labels: Tensor, objects: Tensor, own: Tensor) -> Tensor:
    """Return which detections lie, by half of their area, in an object of their class."""
    low = boxes[:, None, :2].maximum(objects[:, :2])
    high = boxes[:, None, 2:].minimum(objects[:, 2:])
    share = (high - low).clamp(min=0).prod(dim=2) / box_area(boxes).clamp(min=1e-6)[:, None]
    return ((share >= _IOU) & (labels[:, None] == own)).any(dim=1)


def _sheet(model: Detector, samples: Samples, worst: list[Counted]) -> Figure:
    rows: list[tuple[Counted, Image.Image]] = []
    for one in worst:
        try:
            rows.append((one, samples.image(one.index)))
        except UNREADABLE:  # gone since it was evaluated
            continue
    figure = Figure(figsize=(11, 4.5 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 2, squeeze=False)
    for row, (one, image) in zip(axes, rows, strict=True):
        row[0].imshow(draw_detections(image, annotated(model, samples, one.index, image)))
        row[1].imshow(draw_detections(image, one.detections))
        name = f"{samples.path(one.index).name}: annotated ({one.objects})"
        row[0].set_title(name, fontsize=8, parse_math=False)
        text = f"predicted (score {SHOWN_SCORE} and above): {one.missed} missed, {one.false} false"
        row[1].set_title(text, fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure
