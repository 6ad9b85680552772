"""What the report of a classifier shows: images of all classes, and the accuracy of each."""

import numpy as np
import pytest

import rmt
from rmt.classification.metrics import ClassificationMetrics
from rmt.classification.plots import accuracy_of_classes, by_class_in_turn
from rmt.classification.samples import Samples


def test_all_classes_take_turns() -> None:
    labels = np.array([0, 0, 0, 1, 0, 2, 1])
    assert by_class_in_turn(np.array([2, 0, 3, 1, 6, 5]), labels) == [2, 3, 5, 0, 6, 1]


def test_recall_and_precision() -> None:
    labels, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    found = accuracy_of_classes(labels, predicted, ("cat", "dog", "eel"))
    assert found["cat"] == {"images": 3, "recall": pytest.approx(200 / 3), "precision": 100}
    assert found["dog"] == {"images": 1, "recall": 100, "precision": 50}
    assert found["eel"] == {"images": 0, "recall": None, "precision": None}


@pytest.mark.parametrize(("classes", "top5"), [(5, False), (6, True)])
def test_top_5_is_for_more_than_five_classes(classes: int, top5: bool) -> None:
    samples = Samples(np.zeros((1, 4, 4), np.uint8), [0], tuple(map(str, range(classes))))
    metrics = ClassificationMetrics(rmt.create_model("rmt_nano", classes), samples)
    assert ("top5" in metrics.accuracy) == top5
