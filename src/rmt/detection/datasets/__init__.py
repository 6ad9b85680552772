"""The data set formats of detection: a module each, and the table of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rmt.data import formats
from rmt.data.classes import few
from rmt.data.findings import Findings
from rmt.data.splits import Split, Splits
from rmt.detection.annotations import Content
from rmt.detection.datasets import coco, voc, yolo
from rmt.detection.recipe import Data
from rmt.detection.samples import Samples, visible

#: ``data.format`` -> format; signs are tried in this order.
FORMATS: dict[str, formats.Format[Data, Samples]] = formats.table(
    coco.FORMAT, yolo.FORMAT, voc.FORMAT
)

_KINDS = (
    "crowd, not trained on|crowds, not trained on",
    "difficult object, left out of all|difficult objects, left out of all",
    "box without area in its image|boxes without area in their image",
    "box cut at its image's border|boxes cut at their image's border",
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
    test = splits.test
    if test is not None and test is not splits.val and not _with_objects(test):
        what = "the test split has no objects: its annotations are not public, or absent"
        kind = "image not used|images not used"
        splits.findings.note(kind, count=len(test), what=what)
        splits = replace(splits, test=None)
    _note(splits)
    train = splits.train
    if train is None:
        return splits
    with_objects = _with_objects(train)
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


def open_parts(data: Data) -> tuple[Mapping[Split, Samples], Findings]:
    """Return the splits that a data set brings, with every image, and what was left out.

    An undivided data set is all ``train``.

    Raises:
        ValueError: as :func:`open_splits`.
    """
    parts, _, _, findings = formats.open_parts(FORMATS, data)
    return parts, findings


def _with_objects(samples: Samples) -> list[int]:
    """Return the indices of the images with something to train on."""
    return [i for i in range(len(samples)) if samples.has_objects(i)]


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
    empty = len(splits.evaluated) - len(_with_objects(splits.evaluated))
    kind = "image to evaluate without objects|images to evaluate without objects"
    findings.note(kind, count=empty)
    absent = [name for name in splits.classes if name not in seen]
    findings.note(
        "class without objects|classes without objects", count=len(absent), what=few(absent)
    )


def _note_objects(samples: Samples, objects: Sequence[Content], findings: Findings) -> None:
    counts = Counter(_kind_of(entry, samples.images[entry["image_id"]]) for entry in objects)
    for kind in _KINDS:
        findings.note(kind, count=counts[kind])
    without = sum(not entry.get("segmentation") for entry in objects)
    if without < len(objects):  # a set of boxes alone needs no word
        what = "masks are not scored, and not trained where one is missing"
        findings.note("object without mask|objects without mask", count=without, what=what)


def _kind_of(entry: Content, image: Content) -> str:
    height, width = image["height"], image["width"]
    x, y, w, h = entry["bbox"]
    if entry["iscrowd"]:
        return _KINDS[0]
    if entry.get("ignore"):
        return _KINDS[1]
    if not visible(entry, height, width):
        return _KINDS[2]
    beyond = min(x, y) < -0.5 or x + w > width + 0.5 or y + h > height + 0.5
    return _KINDS[3] if beyond else ""
