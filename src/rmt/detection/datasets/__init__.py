"""The data set formats of detection: a module each, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rmt.data import formats
from rmt.data.classes import few
from rmt.data.findings import Findings
from rmt.data.splits import Split, Splits
from rmt.detection.datasets import coco, voc, yolo
from rmt.detection.recipe import Data
from rmt.detection.samples import Samples, visible

#: ``data.format`` -> format; signs are tried in this order.
FORMATS: dict[str, formats.Format[Data, Samples]] = formats.table(
    coco.FORMAT, yolo.FORMAT, voc.FORMAT
)


def open_splits(data: Data, classes: Sequence[str] | None = None) -> Splits[Samples]:
    """Find the images and boxes that a recipe's ``data`` describes, and split them.

    A split that the data bring is kept; otherwise ``val_fraction`` of the images is held out, the
    same images each time.

    Args:
        data: the recipe's section.
        classes: names that a model was trained with: the data may lack objects of some.

    Raises:
        ValueError: if there is nothing, nothing to train on, or an unknown layout.
    """
    splits = formats.open_splits(FORMATS, data, classes)
    _note(splits)
    train = splits.train
    if train is None:
        return splits
    with_objects = [i for i in range(len(train)) if train.has_objects(i)]
    if not with_objects:
        raise ValueError(f"{train.origin} has no image with an object to train on")
    keep_empty = splits.format == yolo.FORMAT.title if data.keep_empty is None else data.keep_empty
    kind = "training image without objects|training images without objects"
    what = "trained on as background" if keep_empty else "not trained on: data.keep_empty"
    splits.findings.note(kind, count=len(train) - len(with_objects), what=what)
    if keep_empty:
        return splits
    rest = sorted(set(range(len(train))) - set(with_objects))
    return replace(splits, train=train.take(with_objects), unused=train.take(rest))


def open_parts(data: Data) -> Mapping[Split, Samples]:
    """Return the splits that a data set brings, with every image; an undivided set is ``train``.

    Raises:
        ValueError: as :func:`open_splits`.
    """
    return formats.open_parts(FORMATS, data)[0]


def _note(splits: Splits[Samples]) -> None:
    """Count what is neither trained on nor scored like other objects."""
    findings = splits.findings
    seen: set[str] = set()
    parts = [each for each in (splits.train, splits.val, splits.test) if each is not None]
    for samples in {id(each): each for each in parts}.values():
        chosen = set(samples.ids)
        own = [entry for entry in samples.content["annotations"] if entry["image_id"] in chosen]
        _note_objects(samples, own, findings)
        names = dict(zip(samples.category_ids, samples.classes, strict=True))
        seen |= {names[entry["category_id"]] for entry in own}
    absent = [name for name in splits.classes if name not in seen]
    findings.note(
        "class without objects|classes without objects", count=len(absent), what=few(absent)
    )


def _note_objects(samples: Samples, objects: Sequence[dict], findings: Findings) -> None:
    counts = dict.fromkeys(("crowd", "ignored", "cut", "dropped"), 0)
    for entry in objects:
        image = samples.images[entry["image_id"]]
        height, width = image["height"], image["width"]
        x, y, w, h = entry["bbox"]
        if entry["iscrowd"]:
            counts["crowd"] += 1
        elif entry.get("ignore"):
            counts["ignored"] += 1
        elif not visible(entry, height, width):
            counts["dropped"] += 1
        elif min(x, y) < -0.5 or x + w > width + 0.5 or y + h > height + 0.5:
            counts["cut"] += 1
    kinds = {
        "crowd": "crowd, not trained on|crowds, not trained on",
        "ignored": "difficult object, left out of all|difficult objects, left out of all",
        "cut": "box cut at its image's border|boxes cut at their image's border",
        "dropped": "box without area in its image|boxes without area in their image",
    }
    for key, kind in kinds.items():
        findings.note(kind, count=counts[key])
