"""`data.batch_size auto`: how the size is found, and that a run records and keeps it."""

from pathlib import Path

import pytest
import torch
import yaml

from rmt.modeling.memory import available_memory
from rmt.task import get_task
from rmt.training import batch_size
from rmt.training.callbacks import Interrupted
from rmt.training.dry_run import dry_run
from rmt.training.fit import fit
from tasks import CASES, Case, signal_at


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_run_records_the_number_and_keeps_it(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = case.recipe_for(
        case.data(tmp_path / "data", 8), data__batch_size="auto", trainer__global_batch_size=5
    )
    with monkeypatch.context() as patch:
        signal_at(patch, 1)
        with pytest.raises(Interrupted):
            fit(recipe, tmp_path / "run")
    assert "data.batch_size auto: 4, the largest power of two" in capsys.readouterr().out
    own = tmp_path / "run" / "recipe.yaml"
    assert yaml.safe_load(own.read_text())["data"]["batch_size"] == 4
    # More memory, or less, does not change a run that has begun.
    monkeypatch.setattr(batch_size, "available_memory", lambda: 0)
    fit(recipe, tmp_path / "run", resume=True)
    assert yaml.safe_load(own.read_text())["data"]["batch_size"] == 4


def found(root: Path, **keys: object) -> int:
    """Return the size that is found."""
    recipe = CASES["classification"].recipe_for(root, data__batch_size="auto", **keys)
    task = get_task("classification")
    return batch_size.resolved(task, recipe, task.training().open_data(recipe)).data.batch_size


def test_what_limits_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = CASES["classification"].data(tmp_path, 320)
    assert found(root) == 32  # ten steps per epoch
    assert found(root, trainer__global_batch_size=100) == 64
    words = [f"--{k}={v}" for k, v in CASES["classification"].keys.items()]
    words += ["--data.batch_size=16", "--data.root", str(root)]
    needed = dry_run("small/folder", words)["memory_gib"]["total"] * 2**30
    monkeypatch.setattr(batch_size, "available_memory", lambda: needed / batch_size.SHARE_OF_RAM)
    assert found(root) == 16
    monkeypatch.setattr(batch_size, "available_memory", lambda: 1000)
    with pytest.raises(ValueError, match="not even 2 images fit into memory"):
        found(root)
    with pytest.raises(ValueError, match=r"'auto', which is for one device"):
        found(root, trainer__devices=2)


def test_on_a_gpu_batches_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a GPU that takes 10 units of memory an image, and has 100 of which 85 may be taken."""
    tried = []

    def train_briefly(task: object, recipe: object, data: object, *, batches: int) -> int:
        assert data.recipe is recipe
        tried.append(recipe.data.batch_size)
        if 10 * tried[-1] > 100:
            raise torch.OutOfMemoryError
        return 10 * tried[-1]

    monkeypatch.setattr(batch_size, "uses_gpu", lambda recipe: True)
    monkeypatch.setattr(batch_size, "train_briefly", train_briefly)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100, 100))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    root = CASES["classification"].data(tmp_path, 320)
    assert found(root, trainer__devices=1) == 8
    assert tried == [2, 4, 8, 16]


def test_a_dry_run_without_data_says_what_it_assumes() -> None:
    described = dry_run("small/folder", ["--model.name=rmt_nano", "--data.batch_size=auto"])
    assert described["recipe"]["data"]["batch_size"] == "auto"
    assert described["batch"] == 64
    assert any("data.batch_size" in own for own in described["assumed"])


def test_available_memory() -> None:
    assert 2**20 < available_memory() < 2**50
