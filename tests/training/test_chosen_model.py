"""`model.name auto`: chosen by the machine, said, stored, and kept by a resumed run."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import rmt
import rmt_cli
from rmt.recipes.schema import AUTO
from rmt.task import get_task
from rmt.training import chosen_model
from rmt.training.chosen_model import with_model
from rmt.training.dry_run import dry_run, show
from rmt.training.find_lr import find_lr
from rmt.training.fit import fit, load_recipe
from rmt.training.run_folder import LAST, read_recipe, read_record
from rmt.weights.load import load_body
from tasks import CASES, Case

NANO = "rmt_nano.tiny_imagenet"
SIZE = r"( at \d+ pixels)?"


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def root(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.data(tmp_path_factory.mktemp(case.task), 2)


def recipe_of(case: Case, root: Path, **keys: Any) -> Any:
    """Return the small recipe with the network of the shipped one."""
    network = get_task(case.task).recipe().model.network
    return case.recipe_for(root, **{f"model__{network}": AUTO}, **keys)


def stored(content: dict[str, Any]) -> tuple[Any, ...]:
    """Return what a recipe's mapping says of the network and its start."""
    model = content["model"]
    return model.get("name", model.get("backbone")), model["checkpoint"], model["pretrained"]


def gpu(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(chosen_model, "uses_gpu", lambda accelerator: there)


@pytest.mark.parametrize(
    ("there", "name", "start", "told"),
    [
        (
            False,
            "rmt_nano",
            NANO,
            rf"rmt_nano with the weights {NANO}{SIZE}, because this machine ",
        ),
        (True, "rmt_t", None, rf"rmt_t from scratch{SIZE}, because this machine has a GPU; --mod"),
    ],
)
def test_by_machine(
    case: Case,
    there: bool,
    name: str,
    start: str | None,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shipped recipe chooses, and a dry run says what; the recipe that it prints may choose."""
    gpu(monkeypatch, there)
    recipe, said = with_model(load_recipe(case.recipe))
    model = recipe.model
    assert (getattr(model, model.network), model.checkpoint, model.pretrained) == (
        name,
        start,
        None,
    )
    assert re.match(told, said)
    assert with_model(recipe) == (recipe, "")
    described = dry_run(case.recipe)
    assert f"model       {said}" in show(described).splitlines()
    with torch.device("meta"):
        expected = get_task(case.task).new_model(
            recipe, [str(i) for i in range(get_task(case.task).reference_classes)]
        )
    assert described["params"] == sum(p.numel() for p in expected.parameters())
    assert stored(described["recipe"])[0] == AUTO


def test_a_run_stores_and_keeps_what_was_chosen(
    case: Case,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Begun on a CPU, it stays what it was where there is a GPU."""
    gpu(monkeypatch, False)
    recipe = recipe_of(case, root)
    fit(recipe, tmp_path)
    said = capsys.readouterr().out
    assert "model: rmt_nano with the weights" in said
    assert f"started from {NANO}; randomly initialised: " in said
    gpu(monkeypatch, True)
    fit(recipe, tmp_path, resume=True)  # the recipe as it was given
    inside = read_record(tmp_path / LAST)["description"]["info"]["recipe"]
    for content in (read_recipe(tmp_path / "recipe.yaml"), inside):
        assert stored(content) == ("rmt_nano", NANO, None)
    assert stored(rmt.load(tmp_path).info["recipe"])[0] == "rmt_nano"
    assert "model: " not in capsys.readouterr().out


def test_the_weights_arrive(case: Case, root: Path) -> None:
    model = get_task(case.task).new_model(case.recipe_for(root), case.classes)
    new = load_body(model, NANO)
    trained = rmt.load(NANO).stem.state_dict()
    assert all(
        torch.equal(value, trained[key]) for key, value in model.body.stem.state_dict().items()
    )
    assert not any("stages" in name for name in new)


def test_what_else_decides(
    case: Case, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu(monkeypatch, False)
    recipe, said = with_model(recipe_of(case, root, model__pretrained="false"))
    assert (recipe.model.checkpoint, recipe.model.pretrained) == (None, None)
    assert said.startswith("rmt_nano from scratch, because trainer.accelerator is cpu; --model.")
    named, said = with_model(case.recipe_for(root, model__pretrained="true"))
    assert (named.model.checkpoint, said) == (NANO, "")
    given = case.recipe_for(root)
    assert with_model(given) == (given, "")  # as before: from scratch
    other = {f"model__{given.model.network}": "rmt_t", "model__pretrained": "true"}
    with pytest.raises(ValueError, match="no weights of rmt_t come with this package: set"):
        with_model(case.recipe_for(root, **other))
    with pytest.raises(ValueError, match=r"model\.pretrained is true and model\.checkpoint is 'x'"):
        case.recipe_for(root, model__pretrained="true", model__checkpoint="x")


def test_a_checkpoint_decides(case: Case, root: Path, tmp_path: Path) -> None:
    """On its network, whatever the machine: a classifier's, or the backbone of its own task."""
    resnet = {f"model__{case.recipe_for(root).model.network}": "test_resnet"}
    starts = {"rmt_s": rmt.create_model("rmt_s", 2)}
    starts["test_resnet"] = get_task(case.task).new_model(
        case.recipe_for(root, **resnet), case.classes
    )
    for name, model in starts.items():
        path = str(model.save_pretrained(tmp_path / name))
        recipe, said = with_model(recipe_of(case, root, model__checkpoint=path))
        assert getattr(recipe.model, recipe.model.network) == name
        assert said == f"{name}, because model.checkpoint {path} holds one"


def test_the_size_of_the_input_suits_the_network() -> None:
    for words, side in (
        (["--model.name=rmt_nano"], 128),
        (["--model.name=resnet18"], 224),
        (["--model.name=rmt_nano", "--data.input_size=96"], 96),
    ):
        assert with_model(load_recipe("small/folder", words))[0].data.side == side
    with pytest.raises(ValueError, match=r"data\.input_size is 'auto', which a training replaces"):
        _ = load_recipe("small/folder").data.side


def test_find_lr_says_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES["classification"]
    find_lr(recipe_of(case, case.data(tmp_path, 4)), steps=10)
    assert "model: rmt_nano with the weights" in capsys.readouterr().out


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = CASES["classification"]
    words = [f"--data.root={case.data(tmp_path / 'data', 2)}", "--data.input_size=32"]
    words += ["--trainer.accelerator=cpu", "--data.num_workers=0", "--data.batch_size=2"]
    told = r"rmt_nano with the weights .*, because trainer\.accelerator is cpu; --model\.name rmt_t"
    assert rmt_cli.main(["train", case.recipe, *words, "--dry-run"]) == 0
    assert re.search(f"^model +{told}", capsys.readouterr().out, re.M)
    words += ["--schedule.epochs=1", "--out", str(tmp_path / "run")]
    assert rmt_cli.main(["train", case.recipe, *words]) == 0
    assert re.search(f"^model: {told}", capsys.readouterr().out, re.M)
