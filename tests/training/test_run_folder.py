"""A run's folder: one run at a time, damaged states, and what a resumed run may change."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import rmt_cli
from rmt.recipes import as_dict
from rmt.training.callbacks import Interrupted
from rmt.training.fit import fit, load_recipe
from rmt.training.run_folder import (
    BEST,
    LAST,
    LOCK,
    MAY_CHANGE,
    PREVIOUS,
    RunFolder,
    check_unchanged,
    read_record,
)
from tasks import CASES, Case, assert_same, signal_at, state

CASE: Case = CASES["classification"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return CASE.data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run of three epochs of three steps."""
    out = tmp_path_factory.mktemp("whole")
    fit(CASE.recipe_for(data, schedule__epochs=3), out)
    return out


@pytest.fixture
def cut(data: Path, tmp_path: Path) -> Path:
    """Return the folder of a run that was stopped in its second epoch."""
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, 5)
        with pytest.raises(Interrupted):
            fit(CASE.recipe_for(data, schedule__epochs=3), tmp_path / "run")
    return tmp_path / "run"


def go_on(data: Path, out: Path, **keys: Any) -> dict[str, Any]:
    return fit(CASE.recipe_for(data, **{"schedule__epochs": 3} | keys), out, resume=True)


def damage(path: Path) -> None:
    """Overwrite 64 bytes of a tensor with zeros: nothing that torch would notice."""
    content = bytearray(path.read_bytes())
    at = len(content) // 2
    content[at : at + 64] = bytes(64)
    path.write_bytes(content)


def test_a_second_run_is_kept_out(data: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run").locked():
        script = "import sys; from rmt.training.run_folder import RunFolder\n"
        script += "with RunFolder(sys.argv[1]).locked(): pass"
        words = [sys.executable, "-c", script, str(tmp_path / "run")]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 1
        assert f"is in use by another run (pid {os.getpid()} on " in done.stderr
    assert not (tmp_path / "run").exists()  # no run began
    assert subprocess.run(words, capture_output=True).returncode == 0


def test_the_lock_of_a_killed_run_is_free(data: Path, tmp_path: Path) -> None:
    script = "import sys, time; from rmt.training.run_folder import RunFolder\n"
    script += "with RunFolder(sys.argv[1]).locked(): print('in', flush=True); time.sleep(60)"
    words = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        process.kill()
    with RunFolder(tmp_path).locked():
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()


def test_what_killed_writes_left_is_removed(data: Path, cut: Path) -> None:
    left = [cut / "checkpoints" / ".best.ckpt.123.partial", cut / ".metrics.json.99.partial"]
    for path in left:
        path.write_bytes(b"half")
    go_on(data, cut)
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize("how", ["zeros", "truncated", "empty", "gone"])
def test_a_damaged_state_gives_way_to_the_one_before_it(
    how: str, data: Path, cut: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cut / LAST
    assert (cut / PREVIOUS).exists()
    if how == "zeros":
        damage(path)
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if how == "empty" else 5000])
    go_on(data, cut)
    said = capsys.readouterr().out
    assert (f"{path} is damaged" in said) == (how != "gone")
    for file in (LAST, BEST):
        assert_same(state(cut, file), state(whole, file))


def test_two_damaged_states_are_too_many(data: Path, cut: Path) -> None:
    for file in (LAST, PREVIOUS):
        damage(cut / file)
    with pytest.raises(ValueError, match="No state of this run can be resumed: restore one"):
        go_on(data, cut)


def test_lost_best_weights_are_reported_and_found_again(
    data: Path, cut: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(cut / BEST)
    metrics = go_on(data, cut)
    assert "the best weights so far are lost" in capsys.readouterr().out
    later = [max(r["raw/top1"], r.get("ema/top1", 0)) for r in metrics["history"][1:]]
    assert metrics["val_top1"] == max(later)
    read_record(cut / BEST)


def test_lost_best_weights_of_a_finished_run(data: Path, cut: Path) -> None:
    go_on(data, cut)
    (cut / BEST).unlink()
    assert go_on(data, cut)["test"]["images"] == 6


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"seed": 1}, "seed is 1, the run has 0"),
        ({"data__batch_size": 3}, r"data\.batch_size is 3, the run has 2"),
        ({"ema__decay": 0.5}, r"ema\.decay is 0\.5, the run has 0\.\d+"),
        ({"data__input_size": 40}, r"data\.input_size is 40, the run has 32"),
        ({"model__name": "rmt_t"}, r"model\.name is 'rmt_t', the run has 'rmt_nano'"),
    ],
)
def test_what_belongs_to_the_run_cannot_change(
    keys: dict[str, Any], message: str, data: Path, cut: Path
) -> None:
    before = {path: path.read_bytes() for path in cut.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=f"cannot change when a run is resumed: {message}"):
        go_on(data, cut, **keys)
    for path, content in before.items():
        assert path.name == LOCK or path.read_bytes() == content


def test_what_may_change_may(data: Path, cut: Path) -> None:
    metrics = go_on(data, cut, schedule__epochs=4, trainer__log_every=1, data__num_workers=1)
    assert len(metrics["history"]) == 4
    assert "schedule.epochs" in MAY_CHANGE


def test_nothing_is_written_before_everything_is_checked(data: Path, cut: Path) -> None:
    """A mistyped folder does no harm: the run can still be resumed."""
    recipe = (cut / "recipe.yaml").read_text()
    words = ["train", CASE.recipe, "--out", str(cut), "--resume"]
    assert rmt_cli.main([*words, "--data.root", "/typo"]) == 2
    assert (cut / "recipe.yaml").read_text() == recipe
    assert rmt_cli.main(words) == 0
    assert (cut / "metrics.json").exists()


def test_a_run_that_cannot_begin_leaves_nothing(tmp_path: Path) -> None:
    words = ["train", CASE.recipe, "--out", str(tmp_path / "run"), "--data.root", "/typo"]
    assert rmt_cli.main(words) == 2
    assert not (tmp_path / "run").exists()


def test_resuming_automatically(data: Path, tmp_path: Path, cut: Path) -> None:
    recipe = CASE.recipe_for(data)
    fit(recipe, tmp_path / "new", resume="auto")
    assert (tmp_path / "new" / "metrics.json").exists()
    fit(CASE.recipe_for(data, schedule__epochs=3), cut, resume="auto")
    assert (cut / "metrics.json").exists()


@pytest.mark.parametrize(
    "keys",
    [
        {"trainer__evaluate_every": 50},
        {"schedule__epochs": 0, "schedule__steps": 3, "trainer__evaluate_every": 50},
    ],
)
def test_the_last_step_is_evaluated_whatever_the_interval(
    keys: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    metrics = fit(CASE.recipe_for(data, **{"schedule__epochs": 2} | keys), tmp_path)
    assert len(metrics["history"]) == 1
    assert (tmp_path / "model.safetensors").exists()


SCRIPT = """
import os, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from tasks import CASES
from rmt.classification.samples import Samples
from rmt.training.fit import fit

how, root, out = sys.argv[1:]
read = Samples.image

def image(self, index):
    if index == 3 and how == "hang":
        time.sleep(1000)
    if index == 3 and how == "die":
        os.kill(os.getpid(), 9)
    return read(self, index)

Samples.image = image
timeout = 600 if how == "hang" and "long" in out else 3
try:
    fit(CASES["classification"].recipe_for(
        Path(root), data__num_workers=2, data__loader_timeout=timeout), out)
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("hang", "no batch came from the loading processes for 3 seconds"),
        ("die", "a loading process has died"),
    ],
)
def test_a_loading_process_that_hangs_or_dies(
    how: str, message: str, data: Path, tmp_path: Path
) -> None:
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]))
    words = [sys.executable, "-c", script, how, str(data), str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert message in done.stdout


def test_a_second_signal_ends_what_hangs(data: Path, tmp_path: Path) -> None:
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]))
    words = [sys.executable, "-c", script, "hang", str(data), str(tmp_path / "long")]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        while not (tmp_path / "long" / "recipe.yaml").exists():
            assert process.poll() is None
            time.sleep(0.1)
        time.sleep(4)  # until the loop waits for the process that hangs
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 143
    assert "stopped at once by a second SIGTERM" in said


def test_metrics_are_plain_numbers(whole: Path) -> None:
    found = json.loads((whole / "metrics.json").read_text())
    assert found["test"]["images"] == 6


def test_a_key_that_is_newer_than_the_run_has_its_default() -> None:
    recipe = load_recipe("small/digits")
    kept = as_dict(recipe)
    del kept["data"]["folds"]
    check_unchanged(recipe, kept)
    with pytest.raises(ValueError, match=r"data\.folds is 5, the run has 0"):
        check_unchanged(load_recipe("small/digits", ["--data.folds=5"]), kept)
