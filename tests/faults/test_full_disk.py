"""A disk that is full costs a message, and nothing of what was written before."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import rmt
from limits import file_size_limit
from rmt.files import write_torch
from rmt.modeling.saved import write_safetensors
from rmt.recipes import as_dict
from rmt.training.run_folder import BEST, LAST, PREVIOUS
from rmt_cli import main
from tasks import CASES, Case, assert_same, signal_at, state

every_task = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
TOO_LARGE = "File too large"


@every_task
def test_a_run_goes_on_where_the_disk_was_full(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    written = case.recipe_for(case.data(tmp_path / "data", 2), schedule__epochs=2)
    recipe.write_text(yaml.safe_dump(as_dict(written)))

    def train(out: str) -> int:
        return main(["train", str(recipe), "--out", str(tmp_path / out), "--resume", "auto"])

    assert train("straight") == 0
    with monkeypatch.context() as only_here:
        signal_at(only_here, calls=1)
        assert train("cut") == 143
    capsys.readouterr()
    before = state(tmp_path / "cut")
    with file_size_limit(300):
        assert train("cut") == 2
    told = capsys.readouterr().err
    assert TOO_LARGE in told
    assert f"{tmp_path}/cut/checkpoints/" in told
    assert "continues with --resume" in told
    assert "Traceback" not in told
    assert_same(state(tmp_path / "cut", PREVIOUS), before)
    assert train("cut") == 0
    for file in (LAST, BEST):
        assert_same(state(tmp_path / "cut", file), state(tmp_path / "straight", file))
    assert not list((tmp_path / "cut").rglob("*.partial"))


def test_a_model_that_does_not_fit_the_disk_leaves_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    description = rmt.create_model("rmt_nano", num_classes=2).describe()
    write_safetensors(path, {"a": torch.ones(2)}, description)
    with file_size_limit(10), pytest.raises(OSError, match=TOO_LARGE) as told:
        write_safetensors(path, {"a": torch.ones(10_000)}, description)
    assert str(path) in str(told.value)
    assert load_file(path)["a"].tolist() == [1, 1]
    with file_size_limit(10), pytest.raises(OSError, match=TOO_LARGE) as told:
        write_torch(tmp_path / "a.ckpt", {"a": torch.ones(10_000)})
    assert str(tmp_path / "a.ckpt") in str(told.value)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_verbs_that_write_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model.safetensors"
    rmt.save(rmt.create_model("rmt_nano", num_classes=2), model)
    photo = CASES["classification"].data(tmp_path / "data", 2) / "train" / "dark" / "train_0.png"
    calls = (
        ["convert", str(model), str(tmp_path / "again.safetensors")],
        ["models", "--json", str(tmp_path / "models.json")],
        ["explain", str(photo), "--checkpoint", str(model), "--out", str(tmp_path / "plots")],
    )
    for words in calls:
        with file_size_limit(1):
            assert main(words) == 2, words
        told = capsys.readouterr().err
        assert TOO_LARGE in told
        assert "Traceback" not in told
        assert "Free some space" in told
