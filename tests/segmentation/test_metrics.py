"""mIoU, mAcc and aAcc by hand: ignored pixels, absent classes, images of several sizes."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rmt.recipes import resolve
from rmt.segmentation import RECIPE, Segmenter
from rmt.segmentation.task import SegmentationTask, summarise

NAMES = ("a", "b", "c", "d")


class Echo(Segmenter):
    """A segmenter whose answer is the red channel of the image."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.num_classes = len(NAMES)
        self.info = {"pretrained_cfg": {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}}
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor, *, full_size: bool = True) -> Tensor:
        classes = torch.arange(len(NAMES))[None, :, None, None]
        return -50.0 * (images[:, :1] - classes).abs()


def judge(pairs: list[tuple[list, list]], batch: int = 1) -> tuple[dict, dict]:
    """Return the metrics of (labels, answer) maps, judged in batches of ``batch``."""
    recipe = resolve(RECIPE, {"task": "segmentation", "test": {"short": 0}})
    task = SegmentationTask(recipe, NAMES, model=Echo().eval())
    examples = [
        (
            torch.tensor(answer, dtype=torch.uint8)[None].repeat(3, 1, 1),
            torch.tensor(labels, dtype=torch.uint8),
        )
        for labels, answer in pairs
    ]
    for at in range(0, len(examples), batch):
        task.score("raw", task.model, examples[at : at + batch])
    return summarise(task.judges["raw"].compute(), NAMES)


def test_by_hand() -> None:
    """Class a: 2 of 3 in the union, b: 2 of 4, c: answered once, labelled never; d: nowhere."""
    overall, by_class = judge([([[0, 0, 1], [0, 1, 1]], [[0, 0, 1], [1, 2, 1]])])
    # a: labelled 3, answered 2, hits 2. b: labelled 3, answered 3, hits 2. c: answered 1.
    assert by_class == pytest.approx(
        {"IoU/a": 200 / 3, "IoU/b": 50.0, "IoU/c": 0.0, "Acc/a": 200 / 3, "Acc/b": 200 / 3}
    )
    assert overall["mIoU"] == pytest.approx((200 / 3 + 50 + 0) / 3)
    assert overall["mAcc"] == pytest.approx(200 / 3)
    assert overall["aAcc"] == pytest.approx(400 / 6)


def test_ignored_pixels_count_nowhere() -> None:
    """An answer of class c on an ignored pixel does not make c occur."""
    overall, by_class = judge([([[0, 255], [1, 255]], [[0, 2], [1, 0]])])
    assert overall == pytest.approx({"mIoU": 100.0, "mAcc": 100.0, "aAcc": 100.0})
    assert set(by_class) == {"IoU/a", "IoU/b", "Acc/a", "Acc/b"}


def test_nothing_labelled_is_zero_not_nan() -> None:
    overall, by_class = judge([([[255, 255]], [[0, 1]])])
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
    answers = np.concatenate([np.ravel(answer) for _, answer in pairs])
    answers, labels = answers[labels != 255], labels[labels != 255]
    iou, accuracy = [], []
    for c in range(len(NAMES)):
        union = ((labels == c) | (answers == c)).sum()
        hits = ((labels == c) & (answers == c)).sum()
        iou.append(hits / union if union else math.nan)
        accuracy.append(hits / (labels == c).sum() if (labels == c).any() else math.nan)
    overall, _ = judge(pairs)
    assert overall["mIoU"] == pytest.approx(100 * np.nanmean(iou))
    assert overall["mAcc"] == pytest.approx(100 * np.nanmean(accuracy))
    assert overall["aAcc"] == pytest.approx(100 * (labels == answers).mean())


@pytest.mark.parametrize("batch", [2, 5])
def test_one_number_whatever_the_batch(batch: int) -> None:
    assert judge(random_maps(), batch) == judge(random_maps())


def test_equals_torchmetrics_jaccard() -> None:
    from torchmetrics.classification import MulticlassJaccardIndex

    judge_all = MulticlassJaccardIndex(len(NAMES), ignore_index=255, average="macro")
    for labels, answer in random_maps():
        judge_all.update(torch.tensor(answer)[None], torch.tensor(labels)[None])
    overall, _ = judge(random_maps())
    assert overall["mIoU"] == pytest.approx(100 * judge_all.compute().item())


def test_classes_of_model_and_data_must_agree() -> None:
    recipe = resolve(RECIPE, {"task": "segmentation"})
    with pytest.raises(ValueError, match="4 classes and the data 2"):
        SegmentationTask(recipe, ("a", "b"), model=Echo())
    model = Echo()
    model.info["label_names"] = ["a", "c", "b", "d"]
    with pytest.raises(ValueError, match="'c' there and 'b' here, 2 differ"):
        SegmentationTask(recipe, NAMES, model=model)
