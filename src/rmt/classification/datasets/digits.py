"""scikit-learn's 1,797 handwritten digits, which come with the library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rmt.classification.recipe import Data
from rmt.classification.samples import Samples
from rmt.data.formats import Format, Source
from rmt.data.splits import Split, hold_out


def read(source: Source[Data]) -> Mapping[Split, Samples]:
    """Return the digits; a fifth of each class is the test split."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    everything = Samples(images, digits.target.tolist(), tuple(map(str, range(10))))
    train, test = hold_out(everything, 0.2, where="digits", labels=everything.labels)
    return {"train": train, "test": test}


FORMAT = Format(name="digits", title="scikit-learn's digits", read=read, needs_root=False)
