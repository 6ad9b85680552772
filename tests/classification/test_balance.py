"""Classes of unequal size: a weighted loss, or balanced sampling."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from rmt.classification.losses import ClassificationLoss
from rmt.classification.samples import Samples, balanced, class_weights
from rmt.data.seeding import seed_all
from rmt.task import get_task
from rmt.training.fit import fit
from tasks import CASES

CASE = CASES["classification"]
TASK = get_task("classification")
#: Six images of the first class, two of the second, none of the third.
UNEQUAL = Samples(np.zeros((8, 4, 4), np.uint8), [0] * 6 + [1] * 2, ("dark", "light", "none"))


def test_weights_are_inverse_frequencies() -> None:
    assert class_weights(UNEQUAL).tolist() == pytest.approx([8 / 12, 8 / 4, 0])
    weights = balanced(UNEQUAL)
    assert weights.mean().item() == pytest.approx(1)
    assert weights[:6].sum().item() == pytest.approx(weights[6:].sum().item())


@pytest.mark.parametrize("mixup", [0, 0.5])
def test_the_weighted_loss(mixup: float) -> None:
    """An image's cross-entropy counts with the weight of its class, a mixed one's with the mean."""
    keys = {"augment__mixup": mixup, "augment__label_smoothing": 0, "data__balance": "loss"}
    recipe = CASE.recipe_for(Path("photos"), **keys)
    model = TASK.new_model(recipe, UNEQUAL.classes)
    loss = ClassificationLoss(recipe, model, UNEQUAL)
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    weights, targets = class_weights(UNEQUAL).float(), F.one_hot(labels, 3).float()
    if mixup:
        seed_all(0)
        _, targets = loss.mixed(torch.zeros(4, 3, 2, 2), labels)
        seed_all(0)
    found, _ = loss(lambda images: logits, (torch.zeros(4, 3, 2, 2), labels))
    each = -(targets * logits.log_softmax(1)).sum(1)
    expected = (each * (targets @ weights)).mean().item()
    assert found["class"].item() == pytest.approx(expected, rel=1e-5)


def test_without_balance_the_loss_is_the_same_as_ever() -> None:
    recipe = CASE.recipe_for(Path("photos"))
    model = TASK.new_model(recipe, UNEQUAL.classes)
    logits, batch = torch.randn(2, 3), (torch.zeros(2, 3, 2, 2), torch.tensor([0, 1]))
    first, second = (
        ClassificationLoss(recipe, model, train)(lambda images: logits, batch)[0]["class"]
        for train in (None, UNEQUAL)
    )
    assert first == second


def test_balanced_sampling_shows_all_classes_equally_often(tmp_path: Path) -> None:
    for name, count in (("dark", 40), ("light", 4)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (8, 8)).save(tmp_path / "train" / name / f"{i}.png")
    recipe = CASE.recipe_for(tmp_path, data__balance="sampling")
    data = TASK.training().open_data(recipe)
    batches = data.train_loader().batch_sampler
    shown: Counter[int] = Counter()
    for epoch in range(20):
        batches.set_epoch(epoch)
        shown.update(data.splits.train.labels[i] for batch in batches for _, i, _ in batch)
    assert shown[1] / shown.total() == pytest.approx(0.5, abs=0.07)


def test_a_run_with_either(tmp_path: Path) -> None:
    photos = CASE.data(tmp_path / "data", 4)
    for balance in ("loss", "sampling"):
        recipe = CASE.recipe_for(photos, data__balance=balance)
        assert fit(recipe, tmp_path / balance)["test"]["images"] == 4
    with pytest.raises(
        ValueError, match=r"data\.balance is 'loss' and model\.token_labels is true"
    ):
        CASE.recipe_for(photos, data__balance="loss", model__token_labels="true")
