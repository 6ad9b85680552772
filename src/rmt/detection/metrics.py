"""COCO's average precision (AP) of a detector's boxes and masks."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from rmt.data.classes import check_classes
from rmt.data.processes import gathered
from rmt.detection.coco_eval import average_precision, by_class
from rmt.detection.detector import Detector
from rmt.detection.recipe import DetectionRecipe
from rmt.detection.rle import to_rle
from rmt.detection.samples import Samples

Found = list[dict[str, Any]]


def check_recipe(recipe: DetectionRecipe) -> None:
    """Raise ``ValueError`` if the first evaluation would fail for want of a library."""
    if find_spec("faster_coco_eval") is None:
        raise ValueError("average precision needs faster-coco-eval: pip install faster-coco-eval")


class DetectionMetrics(nn.Module):
    """Average precision of one set of weights over a split, gathered from all processes.

    Args:
        model: the detector to evaluate.
        samples: the images to evaluate, with their annotations.
        per_class: also return the AP of each class.

    Raises:
        ValueError: if the model's classes are not the data's.
    """

    def __init__(self, model: Detector, samples: Samples, *, per_class: bool) -> None:
        super().__init__()
        self.samples, self.per_class = samples, per_class
        self.has_masks = model.has_masks and samples.has_masks
        self.categories = categories_of(model, samples)
        self.found: Found = []
        self.seen: list[int] = []
        self.notes: list[str] = []

    def update(self, model: nn.Module, batch: Sequence[tuple[Tensor, int]]) -> None:
        """Detect objects in images (3, h, w), one at a time, and keep them with the image's id."""
        for image, image_id in batch:
            (found,) = model([image])
            self.found += as_coco(found, image_id, self.categories)
            self.seen.append(image_id)

    def compute(self) -> dict[str, float]:
        """Return COCO's metrics of boxes and masks in percent, and reset.

        The annotations of images that could not be read are left out.
        """
        found, seen = gathered(self.found), set(gathered(self.seen))
        self.found, self.seen = [], []
        samples = self.samples
        truth = samples.take([i for i, own in enumerate(samples.ids) if own in seen]).only()
        out: dict[str, float] = {}
        for kind in ("box", "mask") if self.has_masks else ("box",):
            numbers, table = average_precision(truth, of_kind(found, kind), kind)
            out |= {f"{kind}_{name}": value for name, value in numbers.items()}
            if self.per_class:
                own = by_class(table, truth)
                out |= {f"{kind}_AP/{name}": value for name, value in own.items()}
        # Images without objects have no AP; with 0 they never decide on the best weights.
        return {"box_AP": 0.0} | out | {"images": float(len(seen))}


def as_coco(found: dict[str, Tensor], image_id: int, categories: tuple[int, ...]) -> Found:
    """Return one image's detections as COCO's results, with boxes as x, y, w, h."""
    boxes = found["boxes"].double().cpu()
    boxes[:, 2:] -= boxes[:, :2]
    records: Found = [
        {
            "image_id": image_id,
            "category_id": categories[label],
            "bbox": box,
            "score": score,
        }
        for box, score, label in zip(
            boxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True
        )
    ]
    if "masks" in found:
        for record, code in zip(records, to_rle(found["masks"].cpu().numpy()), strict=True):
            record["segmentation"] = code
    return records


def of_kind(found: Found, kind: str) -> Found:
    """Return records with boxes or masks only, so that areas are those of what is evaluated."""
    other = {"box": "segmentation", "mask": "bbox"}[kind]
    return [{key: value for key, value in own.items() if key != other} for own in found]


def categories_of(model: Detector, samples: Samples) -> tuple[int, ...]:
    """Return the data's category id of each of the model's labels, matched by name.

    Raises:
        ValueError: if the model's classes are not the data's.
    """
    order = check_classes(
        model.info.get("label_names"),
        samples.classes,
        num_classes=model.num_classes,
        any_order=True,
    )
    return tuple(samples.category_ids[index] for index in order)
