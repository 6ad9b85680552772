"""Report of a segmenter's evaluation: IoU of each class, confused classes, and the worst images."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torchmetrics.functional.classification import multiclass_confusion_matrix

from rmt.data.plots import MOST_CLASSES, class_bars, confusion, write_table
from rmt.segmentation.datamodule import SegmentationData
from rmt.segmentation.inference import label_map
from rmt.segmentation.metrics import summarise
from rmt.segmentation.plots import MOST_ROWS, sheet
from rmt.segmentation.segmenter import IGNORED, Segmenter


@torch.inference_mode()
def draw(model: Segmenter, data: SegmentationData, folder: Path) -> dict[str, str]:
    """Write the plots and ``images.csv``; return file name -> what it shows.

    Args:
        model: in eval mode, of the data's classes.
        data: whose test images are segmented.
        folder: to write into.
    """
    samples, classes = data.splits.evaluated, data.classes
    total = torch.zeros(len(classes), len(classes), dtype=torch.long)
    rows: list[dict[str, object]] = []
    rank: list[tuple[float, float, int, int]] = []
    # Not the loader: its batches do not say which images could not be read.
    reader = data.eval_reader(samples)
    for index in range(len(samples)):
        example = reader(index)
        if example is None:
            continue
        image, labels = example
        predicted = label_map(model, image, data.recipe.inference).cpu().long()
        own = multiclass_confusion_matrix(
            predicted[None], labels[None].long(), len(classes), ignore_index=IGNORED
        )
        total += own
        overall, _ = summarise(own, classes)
        labelled = int(own.sum())
        rows.append(
            {
                "image": samples.name(index),
                "mIoU": round(overall["mIoU"], 2),
                "accuracy": round(overall["aAcc"], 2),
                "labelled_pixels": labelled,
                "wrong_pixels": labelled - int(own.diag().sum()),
            }
        )
        # Images without a labelled pixel have no accuracy; they come last.
        rank.append((overall["aAcc"] if labelled else 101.0, overall["mIoU"], index, len(rank)))
    rank.sort()
    rows = [rows[at] for _, _, _, at in rank]
    worst = [index for _, _, index, _ in rank[:MOST_ROWS]]
    sheet(model, data.recipe, samples, worst).savefig(folder / "worst.png", dpi=110)
    write_table(folder / "images.csv", rows)
    _bars(total, classes).savefig(folder / "iou.png", dpi=110)
    shown = {
        "iou.png": "IoU of each class, the best first",
        "worst.png": "the images with the lowest pixel accuracy: true and predicted classes",
        "images.csv": "every image with its own mIoU and pixel accuracy, the worst first",
    }
    if len(classes) <= MOST_CLASSES:
        confusion(total.numpy(), classes, numbers=False).savefig(folder / "confusion.png", dpi=110)
        shown["confusion.png"] = (
            "percent of the pixels of each true class (row) by predicted class (column)"
        )
    return shown


def _bars(table: torch.Tensor, classes: tuple[str, ...]) -> Figure:
    overall, by_class = summarise(table, classes)
    found = [(name, by_class[f"IoU/{name}"]) for name in classes if f"IoU/{name}" in by_class]
    found.sort(key=lambda item: -item[1])
    figure = class_bars([iou for _, iou in found], [name for name, _ in found], decimals=1)
    (axis,) = figure.axes
    axis.axvline(overall["mIoU"], color="0.4", linestyle="--")
    axis.set_xlabel(f"IoU in percent (mean {overall['mIoU']:.1f}, dashed)")
    return figure
