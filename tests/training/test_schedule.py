"""The learning rate of every epoch of the seven ImageNet rows, against the release's logs."""

import json
from pathlib import Path

import pytest

from rmt.classification.recipe import ClassificationRecipe
from rmt.recipes import read, resolve
from rmt.recipes.schema import Schedule
from rmt.training.optim import BatchSize, learning_rate, peak_lr

LOGS = json.loads((Path(__file__).parents[1] / "golden" / "lr_schedule.json").read_text())
ROWS = [name for name in LOGS if name != "what"]


def recipe_of(row: str, *overrides: str) -> ClassificationRecipe:
    return resolve(ClassificationRecipe, read(f"imagenet/{row}"), overrides)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("world", [1, 8, 16])
def test_every_logged_epoch_of_every_row(row: str, world: int) -> None:
    recipe = recipe_of(row)
    steps = 1_281_167 // 256 * 256 // 2048
    batch = BatchSize.of(recipe, world).total
    if batch != 2048:  # more devices than this row's batch per device is meant for
        recipe = recipe_of(row, "--data.batch_size", str(2048 // world))
        batch = BatchSize.of(recipe, world).total
    assert batch == 2048
    peak = peak_lr(recipe, batch)
    assert peak == 2e-3
    seen = 0
    for epoch, logged in enumerate(LOGS[row]):
        if logged is None:
            continue
        for step in (epoch * steps, (epoch + 1) * steps - 1):  # the same all through an epoch
            rate = learning_rate(recipe.schedule, peak, step, steps)
            assert rate == pytest.approx(logged, rel=1e-9, abs=0)
        seen += 1
    assert seen >= 286


def test_the_papers_batch_is_one_override() -> None:
    recipe = recipe_of("rmt_s", "--trainer.global_batch_size", "1024")
    assert BatchSize.of(recipe, 2).total == 1024
    assert peak_lr(recipe, 1024) == 1e-3


@pytest.mark.parametrize(
    ("batch", "world", "batches"), [(128, 1, 16), (128, 8, 2), (96, 8, 3), (256, 32, 1)]
)
def test_batches_are_accumulated_to_the_nearest(batch: int, world: int, batches: int) -> None:
    recipe = recipe_of("rmt_t", "--data.batch_size", str(batch))
    assert BatchSize.of(recipe, world).accumulation == batches


def test_the_batch_size_is_given_in_one_way() -> None:
    with pytest.raises(
        ValueError, match=r"accumulate_grad_batches is 4 and trainer\.global_batch_size is 2048"
    ):
        recipe_of("rmt_t", "--trainer.accumulate_grad_batches", "4")


def test_without_a_global_batch_the_number_of_batches_counts() -> None:
    words = ("--trainer.global_batch_size", "0", "--trainer.accumulate_grad_batches", "4")
    size = BatchSize.of(recipe_of("rmt_t", *words), 3)
    assert size.accumulation == 4
    assert str(size) == (
        "global batch size 3072 = 256 per device × 3 devices × 4 accumulation steps"
    )


def test_shapes_at_their_corners() -> None:
    poly = Schedule(
        steps=100, name="poly", power=0.9, warmup_steps=10, warmup_ratio=0.1, min_lr=1.0
    )
    assert learning_rate(poly, 10.0, 0, 7) == 1.0
    # Half of the way up to the falling curve, as in mmcv.
    assert learning_rate(poly, 10.0, 5, 7) == pytest.approx((1 + 9 * 0.95**0.9) * 0.55)
    assert learning_rate(poly, 10.0, 50, 7) == pytest.approx(1 + 9 * 0.5**0.9)
    assert learning_rate(poly, 10.0, 100, 7) == 1.0
    step = Schedule(epochs=12, name="step", milestones=(8, 11))
    rates = [learning_rate(step, 1.0, epoch * 7, 7) for epoch in (7, 8, 10, 11)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01])
    constant = Schedule(epochs=3, name="constant", warmup_epochs=0.5)
    assert [learning_rate(constant, 2.0, at, 4) for at in range(4)] == [0, 1.0, 2.0, 2.0]
