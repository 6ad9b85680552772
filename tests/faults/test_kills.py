"""Runs that are killed at any moment, again and again, end as the run that was not."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rmt.recipes import as_dict
from rmt.training.fit import fit, load_recipe
from rmt.training.run_folder import BEST, LAST
from tasks import CASES, assert_same, state

#: (task, loading processes, seed); the slow ones besides.
QUICK = [("segmentation", 0, 1)]
PLANS = [(task, workers, seed) for task in CASES for workers in (0, 2) for seed in (2, 3, 4)]
PLANS += [("classification", 2, 5), ("detection", 2, 5)]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {task: case.data(tmp_path_factory.mktemp(task)) for task, case in CASES.items()}


@pytest.fixture(scope="module")
def straight(roots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of uninterrupted runs, made when first asked for."""

    class Runs(dict):
        def __missing__(self, task: str) -> Path:
            out = tmp_path_factory.mktemp(f"{task}-straight")
            fit(load_recipe(write_recipe(task, 0, roots[task], out.parent)), out)
            self[task] = out
            return out

    return Runs()


def write_recipe(task: str, workers: int, root: Path, folder: Path) -> Path:
    recipe = CASES[task].recipe_for(
        root,
        schedule__epochs=3,
        ema__decay=0.9,
        trainer__save_every=1,
        trainer__threads=1,
        data__num_workers=workers,
    )
    path = folder / f"{task}-{workers}.yaml"
    path.write_text(yaml.safe_dump(as_dict(recipe)))
    return path


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("task", "workers", "seed"),
    [*QUICK, *(pytest.param(*plan, marks=pytest.mark.slow) for plan in PLANS)],
)
def test_killed_runs_end_like_one_that_was_not(
    task: str,
    workers: int,
    seed: int,
    roots: dict[str, Path],
    straight: dict[str, Path],
    tmp_path: Path,
) -> None:
    """Two kills at random moments after the first step, each by SIGKILL or SIGTERM."""
    chance, out = random.Random(seed), tmp_path / "run"
    recipe = write_recipe(task, workers, roots[task], tmp_path)
    words = [sys.executable, "-m", "rmt_cli", "train", str(recipe), "--out", str(out)]
    for _ in range(2):
        process = subprocess.Popen(
            [*words, "--resume", "auto"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        seen = changed(out)
        while changed(out) == seen and process.poll() is None:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 2))
        process.send_signal(chance.choice([signal.SIGKILL, signal.SIGTERM]))
        process.wait(timeout=120)
    done = subprocess.run([*words, "--resume", "auto"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for file in (LAST, BEST):
        ours, expected = state(out, file), state(straight[task], file)
        ours["found"].pop("description"), expected["found"].pop("description")  # num_workers
        assert_same(ours, expected)
    assert not list(out.rglob("*.partial"))


def changed(out: Path) -> float:
    """Return when the run last saved its state."""
    return max((p.stat().st_mtime for p in out.glob("checkpoints/*.ckpt")), default=0.0)
