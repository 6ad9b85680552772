"""The data set formats of classification: a module each, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence

from rmt.classification.datasets import (
    csv_file,
    digits,
    fashion_mnist,
    folder,
    imagenet,
    imagenet_c,
    parquet,
    tar,
    webdataset,
)
from rmt.classification.recipe import Data
from rmt.classification.samples import EvaluationRule, Samples
from rmt.data import formats
from rmt.data.classes import few
from rmt.data.findings import Findings
from rmt.data.splits import Splits

#: ``data.format`` -> format; signs are tried in this order.
FORMATS: dict[str, formats.Format[Data, Samples]] = formats.table(
    csv_file.FORMAT,
    fashion_mnist.FORMAT,
    imagenet.REAL,
    imagenet_c.FORMAT,
    folder.FORMAT,  # whatever archives lie beside the folders
    webdataset.FORMAT,
    tar.FORMAT,
    parquet.FORMAT,
    digits.FORMAT,
    imagenet.FORMAT,
)


def open_splits(data: Data, classes: Sequence[str] | None = None) -> Splits[Samples]:
    """Find the images that a recipe's ``data`` describes, and split them.

    A split that the data bring is kept; otherwise ``val_fraction`` of each class is held out, the
    same images each time (1: everything is evaluated).

    Args:
        data: the recipe's section.
        classes: names that a model was trained with: the data may lack images of some.

    Raises:
        ValueError: if there are no images, or of one class only, or an unknown layout.
    """
    splits = formats.open_splits(FORMATS, data, classes, labels=_strata)
    if data.multi_label and not splits.val.multi_label:
        raise ValueError(
            f"data.multi_label is true, but {splits.format} hold one label of each image; several "
            "come from a CSV file (docs/data.md)"
        )
    if splits.train is not None:
        _strata(splits.train)
        _note_absent(splits.train, "training images", splits.findings)
    _note_absent(splits.evaluated, "images to evaluate", splits.findings)
    return splits


def _strata(samples: Samples) -> Sequence[int]:
    """Return a class of each training image; there must be two, of several labels each one."""
    present = samples.present
    if samples.multi_label:
        if not present:
            raise ValueError("no training image has a label: is the column labels empty?")
    elif len(present) < 2:
        name = samples.classes[min(present, default=0)]
        raise ValueError(
            f"the training images are of one class only ({name!r}); a classifier needs two or "
            "more. Is data.root the folder that holds the class folders?"
        )
    return samples.strata


def _note_absent(samples: Samples, what: str, findings: Findings) -> None:
    """Name the classes without images, unless the data set's protocol provides for them."""
    if type(samples.rule) is EvaluationRule:
        present = samples.present
        absent = [name for i, name in enumerate(samples.classes) if i not in present]
        findings.note(
            f"class without {what}|classes without {what}", count=len(absent), what=few(absent)
        )
