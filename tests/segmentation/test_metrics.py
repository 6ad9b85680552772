"""mIoU, mAcc and aAcc by hand: ignored pixels, absent classes, images of several sizes."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rmt.segmentation import Segmenter
from rmt.segmentation.metrics import SegmentationMetrics
from rmt.segmentation.recipe import Inference

NAMES = ("a", "b", "c", "d")


class Echo(Segmenter):
    """A segmenter whose prediction is the red channel of the image."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.num_classes = len(NAMES)
        self.info = {"pretrained_cfg": {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}}
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor, *, full_size: bool = True) -> Tensor:
        classes = torch.arange(len(NAMES))[None, :, None, None]
        return -50.0 * (images[:, :1] - classes).abs()


def metrics_of(pairs: list[tuple[list, list]], batch: int = 1) -> tuple[dict, dict]:
    """Return the metrics of (labels, predicted) maps, evaluated in batches of ``batch``."""
    metrics = SegmentationMetrics(NAMES, Inference(min_size=0), per_class=True)
    model = Echo().eval()
    examples = [
        (
            torch.tensor(predicted, dtype=torch.uint8)[None].repeat(3, 1, 1),
            torch.tensor(labels, dtype=torch.uint8),
        )
        for labels, predicted in pairs
    ]
    for at in range(0, len(examples), batch):
        metrics.update(model, examples[at : at + batch])
    found = metrics.compute()
    assert found.pop("images") == len(pairs)
    by_class = {name: value for name, value in found.items() if "/" in name}
    return {name: value for name, value in found.items() if "/" not in name}, by_class


def test_by_hand() -> None:
    """Class a: 2 of 3 in the union, b: 2 of 4, c: predicted once, labelled never; d: nowhere."""
    overall, by_class = metrics_of([([[0, 0, 1], [0, 1, 1]], [[0, 0, 1], [1, 2, 1]])])
    # a: labelled 3, predicted 2, hits 2. b: labelled 3, predicted 3, hits 2. c: predicted 1.
    assert by_class == pytest.approx(
        {"IoU/a": 200 / 3, "IoU/b": 50.0, "IoU/c": 0.0, "Acc/a": 200 / 3, "Acc/b": 200 / 3}
    )
    assert overall["mIoU"] == pytest.approx((200 / 3 + 50 + 0) / 3)
    assert overall["mAcc"] == pytest.approx(200 / 3)
    assert overall["aAcc"] == pytest.approx(400 / 6)


def test_ignored_pixels_count_nowhere() -> None:
    """A prediction of class c on an ignored pixel does not make c occur."""
    overall, by_class = metrics_of([([[0, 255], [1, 255]], [[0, 2], [1, 0]])])
    assert overall == pytest.approx({"mIoU": 100.0, "mAcc": 100.0, "aAcc": 100.0})
    assert set(by_class) == {"IoU/a", "IoU/b", "Acc/a", "Acc/b"}


def test_nothing_labelled_is_zero_not_nan() -> None:
    overall, by_class = metrics_of([([[255, 255]], [[0, 1]])])
    assert overall == {"mIoU": 0.0, "mAcc": 0.0, "aAcc": 0.0}
    assert by_class == {}


def random_maps() -> list[tuple[list, list]]:
    rng = np.random.default_rng(0)
    pairs = []
    for height, width in ((3, 5), (1, 1), (8, 2), (7, 7), (16, 9)):
        labels = rng.integers(0, 3, (height, width))  # class d is never labelled
        labels[rng.random((height, width)) < 0.2] = 255
        pairs.append((labels.tolist(), rng.integers(0, 3, (height, width)).tolist()))
    return pairs


def test_sums_over_images_of_several_sizes() -> None:
    """Areas are summed over the set before dividing, which no mean over images equals."""
    pairs = random_maps()
    labels = np.concatenate([np.ravel(label) for label, _ in pairs])
    predictions = np.concatenate([np.ravel(prediction) for _, prediction in pairs])
    predictions, labels = predictions[labels != 255], labels[labels != 255]
    iou, accuracy = [], []
    for c in range(len(NAMES)):
        union = ((labels == c) | (predictions == c)).sum()
        hits = ((labels == c) & (predictions == c)).sum()
        iou.append(hits / union if union else math.nan)
        accuracy.append(hits / (labels == c).sum() if (labels == c).any() else math.nan)
    overall, _ = metrics_of(pairs)
    assert overall["mIoU"] == pytest.approx(100 * np.nanmean(iou))
    assert overall["mAcc"] == pytest.approx(100 * np.nanmean(accuracy))
    assert overall["aAcc"] == pytest.approx(100 * (labels == predictions).mean())


@pytest.mark.parametrize("batch", [2, 5])
def test_one_number_whatever_the_batch(batch: int) -> None:
    assert metrics_of(random_maps(), batch) == metrics_of(random_maps())


def test_equals_torchmetrics_jaccard() -> None:
    from torchmetrics.classification import MulticlassJaccardIndex

    jaccard = MulticlassJaccardIndex(len(NAMES), ignore_index=255, average="macro")
    for labels, prediction in random_maps():
        jaccard.update(torch.tensor(prediction)[None], torch.tensor(labels)[None])
    overall, _ = metrics_of(random_maps())
    assert overall["mIoU"] == pytest.approx(100 * jaccard.compute().item())
