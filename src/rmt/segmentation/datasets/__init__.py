"""The data set formats of segmentation: a module each, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence

from rmt.data import formats
from rmt.data.splits import Splits
from rmt.segmentation.datasets import ade20k, cityscapes, folder, voc
from rmt.segmentation.recipe import Data
from rmt.segmentation.samples import Samples

#: ``data.format`` -> format; signs are tried in this order.
FORMATS: dict[str, formats.Format[Data, Samples]] = formats.table(
    cityscapes.FORMAT, voc.FORMAT, ade20k.FORMAT, folder.FORMAT
)


def open_splits(data: Data, classes: Sequence[str] | None = None) -> Splits[Samples]:
    """Find the images and masks that a recipe's ``data`` describes, and split them.

    A split that the data bring is kept; otherwise ``val_fraction`` of the images is held out, the
    same images each time.

    Args:
        data: the recipe's section.
        classes: names that a model was trained with; masks number the classes, so that the data
            must list the same ones.

    Raises:
        ValueError: if there is nothing, an unknown layout, or no image has a mask.
    """
    return formats.open_splits(FORMATS, data, classes)
