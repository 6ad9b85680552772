"""Training and judging a detector."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from rmt.detection import create_detector
from rmt.detection.coco import to_rle
from rmt.detection.coco_eval import average_precision, by_class
from rmt.detection.detector import Detector
from rmt.detection.recipe import DetectionRecipe
from rmt.detection.sources import Samples, Splits
from rmt.training.module import Engine
from rmt.training.optim import freeze

Found = list[dict[str, Any]]


class DetectionTask(Engine):
    """A detector with its losses, and COCO's average precision of boxes and masks.

    Args:
        recipe: of the run.
        splits: of the data; what is judged is compared with their annotations.
        model: to judge; None makes a fresh one to train.

    Raises:
        ValueError: if the model's classes are not the data's.
    """

    key = "box_AP"

    def __init__(
        self, recipe: DetectionRecipe, splits: Splits, *, model: Detector | None = None
    ) -> None:
        classes = splits.classes
        model = model or new_model(recipe, classes)
        super().__init__(model, recipe)
        if recipe.trainer.compile:
            self._network = (model.compile_for_training(),)
        self.splits = splits
        self.categories = categories_of(model, splits.val)
        self.found: dict[str, Found] = {weights: [] for weights in self.kept_weights()}
        self.seen: list[int] = []
        self.precision: dict[str, Any] = {}

    def losses(self, batch: tuple[list[Tensor], list[dict[str, Tensor]]]) -> dict[str, Tensor]:
        """Return the losses of a batch of images and targets, sized by the pipeline."""
        images, targets = batch
        return self.network(images, targets, resize=False)

    def score(self, weights: str, model: nn.Module, batch: list[tuple[Tensor, int]]) -> None:
        """Keep what is found in whole images, one by one."""
        for image, image_id in batch:
            (found,) = model([image])
            self.found[weights] += as_coco(found, image_id, self.categories)
            if weights == "raw":
                self.seen.append(image_id)

    def metrics(self, weights: str) -> dict[str, float]:
        """Return COCO's numbers of boxes and masks in percent, and at a test those of each class.

        Images that could not be read are left out of the truth as well.
        """
        is_test = self.trainer.state.fn == "test"
        samples = (self.splits.test if is_test else None) or self.splits.val
        found, seen = _gathered(self.found[weights]), _gathered(self.seen)
        self.found[weights] = []
        if weights == list(self.found)[-1]:
            self.seen = []
        truth = samples.take([i for i, own in enumerate(samples.ids) if own in set(seen)]).only()
        kinds = ("box", "mask") if self.model.has_masks and samples.has_masks else ("box",)
        out: dict[str, float] = {}
        for kind in kinds:
            numbers, table = average_precision(truth, of_kind(found, kind), kind)
            out |= {f"{kind}_{name}": value for name, value in numbers.items()}
            self.precision[kind] = table
            if is_test:
                own = by_class(table, truth)
                out |= {f"{kind}_AP/{name}": value for name, value in own.items()}
        # A set without an object has no AP; 0 keeps it from being the best.
        return {self.key: 0.0} | out | {"images": float(len(seen))}


def as_coco(found: dict[str, Tensor], image_id: int, categories: tuple[int, ...]) -> Found:
    """Return one image's detections as records of plain values, boxes as x, y, w, h."""
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
    """Return records to judge as boxes or as masks: the area of a mask is then its own."""
    other = {"box": "segmentation", "mask": "bbox"}[kind]
    return [{key: value for key, value in own.items() if key != other} for own in found]


def categories_of(model: Detector, samples: Samples) -> tuple[int, ...]:
    """Return the data's category id of each of the model's labels.

    Labels are matched by name where all names are known to the data, else by their order.

    Raises:
        ValueError: if the numbers of classes differ.
    """
    if model.num_classes != len(samples.classes):
        raise ValueError(
            f"the model has {model.num_classes} classes and the data {len(samples.classes)}"
        )
    ids = dict(zip(samples.classes, samples.category_ids, strict=True))
    names = model.info.get("label_names") or []
    if set(names) == set(ids):
        return tuple(ids[name] for name in names)
    return samples.category_ids


def new_model(recipe: DetectionRecipe, classes: tuple[str, ...]) -> Detector:
    """Return the recipe's network with fresh weights."""
    wanted = recipe.model
    if wanted.num_classes not in (None, len(classes)):
        raise ValueError(f"model.num_classes is {wanted.num_classes}; the data has {len(classes)}")
    model = create_detector(
        wanted.head,
        wanted.backbone,
        num_classes=len(classes),
        min_size=wanted.min_size,
        max_size=wanted.max_size,
        drop_path_rate=wanted.drop_path_rate,
        roi_samples_per_image=wanted.roi_samples_per_image,
    )
    model.info["label_names"] = list(classes)
    freeze(model, wanted.freeze)
    return model


def _gathered(values: list) -> list:
    """Return the lists of all processes as one."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    parts: list[list] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]
