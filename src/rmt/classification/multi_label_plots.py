"""Reports of a classifier of several labels: each class by itself, and the images it gets wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from rmt.classification.datamodule import ClassificationData
from rmt.classification.models import Classifier
from rmt.classification.multi_label import average_precision
from rmt.classification.samples import Samples
from rmt.data.classes import few
from rmt.data.plots import MOST_CLASSES, class_bars, write_table
from rmt.files import for_people, write_json
from rmt.messages import printable

#: From this score on, a class counts as predicted.
THRESHOLD = 0.5
_SIDE = 5


@dataclass(frozen=True)
class Found:
    """The predictions for the readable images of a split.

    Attributes:
        samples: the images.
        scores: (N, K).
        targets: (N, K), whether each image has each class.
        indices: (N,), of each image in the split.
    """

    samples: Samples
    scores: np.ndarray
    targets: np.ndarray
    indices: np.ndarray

    @property
    def losses(self) -> np.ndarray:
        """The binary cross-entropy of each image, averaged over classes, (N,)."""
        right = np.where(self.targets, self.scores, 1 - self.scores)
        return -np.log(right.clip(1e-12)).mean(1)

    def names(self, chosen: np.ndarray) -> list[str]:
        """Return the names of some classes, given by (K,) of true and false."""
        return [self.samples.classes[at] for at in np.flatnonzero(chosen)]


def draw(model: Classifier, data: ClassificationData, folder: Path) -> dict[str, str]:
    """Write the plots and the numbers of each class; return file name -> what it shows.

    Args:
        model: of the data's classes.
        data: whose evaluated images are predicted.
        folder: to write into.
    """
    found, split = predicted(model.eval(), data), data.splits.evaluated_name
    write_json(folder / "classes.json", for_people(numbers_of_classes(found)))
    worst_first = np.argsort(-found.losses, kind="stable").tolist()
    chosen = dict.fromkeys([*worst_first[: _SIDE**2 // 2], *worst_first[::-1]])
    _sheet(found, list(chosen)[: _SIDE**2]).savefig(folder / "predictions.png", dpi=110)
    return _bars(found, folder, split) | {
        "predictions.png": f"images of the {split} split with their labels, the worst ones first",
        "classes.json": f"images, AP, recall and precision of each class on the {split} split",
    }


def draw_evaluation(model: Classifier, data: ClassificationData, folder: Path) -> dict[str, str]:
    """Write the plots and ``images.csv``; return file name -> what it shows.

    Args:
        model: in eval mode, of the data's classes.
        data: whose evaluated images are predicted.
        folder: to write into.
    """
    found = predicted(model, data)
    order = np.argsort(-found.losses, kind="stable").tolist()
    _sheet(found, order[: _SIDE**2]).savefig(folder / "doubted.png", dpi=110)
    _write_images(found, order, folder / "images.csv")
    return _bars(found, folder, data.splits.evaluated_name) | {
        "doubted.png": "the images whose labels the model doubts most: wrong labels or mistakes",
        "images.csv": "every image with its labels and mistakes, the most doubted labels first",
    }


@torch.inference_mode()
def predicted(model: Classifier, data: ClassificationData) -> Found:
    """Return the predictions of a model in eval mode for the evaluated images of its data."""
    samples, device = data.splits.evaluated, next(model.parameters()).device
    parts = [
        (model(images.to(device)).float().sigmoid().cpu(), targets, indices)
        for images, targets, indices in data.eval_loader(samples)
        if len(targets)
    ]
    scores, targets, indices = (torch.cat(own).numpy() for own in zip(*parts, strict=True))
    return Found(samples, scores, targets > 0, indices)


def numbers_of_classes(found: Found) -> dict[str, dict[str, float | int | None]]:
    """Return for each class its images, AP, and at a score of ½ recall and precision in percent.

    Each is None where it is not defined: without an image of the class, or without a prediction.
    """
    rows: dict[str, dict[str, float | int | None]] = {}
    for at, name in enumerate(found.samples.classes):
        scores, own = found.scores[:, at], found.targets[:, at]
        images, guesses = int(own.sum()), int((scores >= THRESHOLD).sum())
        hits = 100 * float((own & (scores >= THRESHOLD)).sum())
        rows[name] = {
            "images": images,
            "AP": 100 * average_precision(scores, own) if images else None,
            "recall": hits / images if images else None,
            "precision": hits / guesses if guesses else None,
        }
    return rows


def _bars(found: Found, folder: Path, split: str) -> dict[str, str]:
    """Draw the AP of each class; return file name -> what it shows."""
    rows = [
        (own["AP"], f"{printable(name, limit=40)} ({own['images']})")
        for name, own in numbers_of_classes(found).items()
        if own["AP"] is not None
    ]
    shown = sorted(rows)[:MOST_CLASSES]
    figure = class_bars([value for value, _ in shown], [name for _, name in shown], decimals=0)
    (axis,) = figure.axes
    lowest = f", the lowest {len(shown)} of {len(rows)}" if len(rows) > len(shown) else ""
    axis.set_title(f"AP on the {split} split{lowest} (number of images)", fontsize=10)
    axis.set_xlabel("average precision in percent")
    figure.savefig(folder / "average_precision.png", dpi=110)
    return {"average_precision.png": f"average precision of each class on the {split} split"}


def _sheet(found: Found, chosen: list[int]) -> Figure:
    rows = max(1, -(-len(chosen) // _SIDE))
    figure = Figure(figsize=(2.4 * _SIDE, 2.6 * rows), layout="constrained")
    axes: Any = figure.subplots(rows, _SIDE, squeeze=False)
    for axis, at in zip(axes.ravel(), chosen, strict=False):  # the last row may be shorter
        axis.imshow(found.samples.image(int(found.indices[at])))
        guessed = found.scores[at] >= THRESHOLD
        said, true = (_listed(found.names(each)) for each in (guessed, found.targets[at]))
        colour = "green" if said == true else "red"
        text = f"predicted: {said}" + (f"\ntrue: {true}" if said != true else "")
        axis.set_title(text, fontsize=7, color=colour, parse_math=False)
    for axis in figure.axes:
        axis.set_axis_off()
    return figure


def _listed(names: list[str]) -> str:
    return printable(few(names, 4), limit=60) or "none"


def _write_images(found: Found, order: list[int], path: Path) -> None:
    losses = found.losses
    rows = []
    for at in order:
        guessed, true = found.scores[at] >= THRESHOLD, found.targets[at]
        rows.append(
            {
                "image": found.samples.name(int(found.indices[at])),
                "labels": "|".join(found.names(true)),
                "predicted": "|".join(found.names(guessed)),
                "missed": "|".join(found.names(true & ~guessed)),
                "false": "|".join(found.names(guessed & ~true)),
                "loss": round(float(losses[at]), 4),
            }
        )
    write_table(path, rows)
