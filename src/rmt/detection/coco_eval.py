"""Average precision as COCO defines it, by faster-coco-eval (equal to pycocotools)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, Literal

import numpy as np

#: COCO's twelve metrics, in their order.
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
_KINDS: dict[str, Literal["bbox", "segm"]] = {"box": "bbox", "mask": "segm"}


def average_precision(
    truth: dict[str, Any], found: Sequence[dict[str, Any]], kind: str
) -> tuple[dict[str, float], np.ndarray]:
    """Return COCO's metrics in percent, and precision over recall.

    Args:
        truth: a data set in COCO's format.
        found: ``image_id``, ``category_id``, ``score`` and ``bbox`` (x, y, w, h) or, for masks,
            ``segmentation`` as a run-length encoding.
        kind: ``box`` or ``mask``.

    Returns:
        :data:`NAMES` -> percent, without those that are undefined for the data (if it has no small
        objects, say); and precision (10 IoU thresholds, 101 recalls, K), -1 for classes that do
        not occur.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    # Numbered from 1: an object of id 0, which many tools write, would count as not found.
    # What is to be ignored (VOC's difficult objects) counts as a crowd: neither hit nor miss.
    objects = [
        entry | {"id": i, "iscrowd": int(bool(entry["iscrowd"] or entry.get("ignore")))}
        for i, entry in enumerate(truth["annotations"], start=1)
    ]
    with redirect_stdout(io.StringIO()):
        ours = COCO(truth | {"annotations": objects})
        scorer = COCOeval_faster(ours, ours.loadRes(list(found)), iouType=_KINDS[kind])
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    stats = [float(value) for value in scorer.stats[: len(NAMES)]]
    numbers = {name: 100 * value for name, value in zip(NAMES, stats, strict=True) if value > -1}
    return numbers, scorer.eval["precision"][:, :, :, 0, -1]


def by_class(precision: np.ndarray, truth: dict[str, Any]) -> dict[str, float]:
    """Return each occurring class's AP in percent, from :func:`average_precision`'s table."""
    # The classes of the table are ordered by id, not as the file lists them.
    names = [entry["name"] for entry in sorted(truth["categories"], key=lambda e: e["id"])]
    out = {}
    for i, name in enumerate(names):
        values = precision[:, :, i]
        values = values[values > -1]
        if values.size:
            out[name] = 100 * float(values.mean())
    return out
