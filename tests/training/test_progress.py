"""What a run says while it trains, in all tasks: lines in a log file, and why it stopped early."""

import re
from pathlib import Path

import pytest

from rmt.messages import duration
from rmt.recipes.schema import Schedule
from rmt.task import get_task
from rmt.training import progress
from rmt.training.fit import fit
from rmt.training.optim import has_come_down
from tasks import CASES

#: Images of a split; batches have two.
IMAGES = 6


@pytest.mark.parametrize("task", CASES)
def test_a_log_file_has_a_line_per_epoch_and_says_why_a_run_stopped(
    task: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = CASES[task]
    recipe = case.recipe_for(
        case.data(tmp_path / "data", IMAGES),
        schedule__epochs=9,
        schedule__name="constant",
        schedule__warmup_epochs=0,
        schedule__warmup_steps=0,
        optimizer__lr=1e-20,  # so that only the statistics of batch norms change
        ema__decay=0,
        trainer__early_stopping_patience=2,
        trainer__early_stopping_max_lr=1,
    )
    monkeypatch.setattr(progress, "STEPS", 1)
    metrics = fit(recipe, tmp_path / "run")
    monitor = get_task(task).monitor(recipe)
    history = metrics["history"]
    scores = [record[f"raw/{monitor}"] for record in history]
    best = scores.index(max(scores))
    assert len(history) == best + 3 < recipe.schedule.epochs
    lines = capsys.readouterr().out.splitlines()
    epochs = [line for line in lines if line.startswith("epoch ")]
    per_epoch = history[0]["step"]
    for epoch, (line, score) in enumerate(zip(epochs, scores, strict=True), 1):
        begins = f"epoch {epoch}/9  step {epoch * per_epoch}/{9 * per_epoch}  loss "
        ends = rf"\d+\.\d+  val/{monitor} {score:.2f}  lr 1\.00e-20  .+ left"
        assert re.fullmatch(re.escape(begins) + ends, line), line
    (expected_time,) = [line for line in lines if line.startswith("one step takes ")]
    assert expected_time.endswith("without evaluations and unless it stops early")
    (why,) = [line for line in lines if line.startswith("stopped early")]
    assert why == (
        f"stopped early after {len(history)} evaluations: the last 2 were not better than "
        f"val/{monitor} {scores[best]:.2f} at step {(best + 1) * per_epoch} (epoch {best + 1}); "
        "the raw weights of that step are kept"
    )


def test_a_line_every_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES["classification"]
    monkeypatch.setattr(progress, "EVERY", 0.0)
    fit(case.recipe_for(case.data(tmp_path / "data", IMAGES)), tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines if line.startswith("epoch 1/1")] == [
        "step 1/3",
        "step 2/3",
        "step 3/3",
        "step 3/3",
    ]
    assert "evaluated 3 of 3 batches" in lines


def test_a_terminal_has_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(progress.progress(), progress.LogLines)
    monkeypatch.setattr(progress.get_console(), "_force_terminal", True)
    assert isinstance(progress.progress(), progress.Bar)


@pytest.mark.parametrize(
    ("schedule", "first"),
    [
        # 10 steps per epoch. A half cosine is below a tenth of its height after 79.5 % of the way.
        (Schedule(epochs=10, warmup_epochs=1), 80),
        (Schedule(steps=100), 80),
        (Schedule(epochs=10, name="step", milestones=(7, 9)), 70),
        (Schedule(epochs=10, name="constant", warmup_epochs=2), 20),
        (Schedule(epochs=10, name="cosine", min_lr=0.5), 99),
    ],
)
def test_when_the_rate_has_come_down(schedule: Schedule, first: int) -> None:
    low = [has_come_down(schedule, 1.0, step, 10, 0.1) for step in range(100)]
    assert low.index(True) == first
    assert all(low[first:])
    warm = [has_come_down(schedule, 1.0, step, 10, 1.0) for step in range(100)]
    assert warm.index(True) == round(10 * schedule.warmup_epochs)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.1234, "0.12 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (3571, "1 h 00 min"),
        (3 * 3600 + 299, "3 h 05 min"),
        (60 * 3600, "2.5 days"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
