"""What every task promises, run over all three: a fix in one task is a fix in all."""

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import rmt
from rmt.data.images import read_image
from rmt.files import for_people
from rmt.task import TASKS, get_task
from rmt.tools import report
from rmt.tools.predict import Predictor, predict_files
from rmt.training.callbacks import Interrupted
from rmt.training.data_record import DataRecord
from rmt.training.dry_run import dry_run, show
from rmt.training.evaluate import evaluate
from rmt.training.fit import fit
from rmt.training.run_folder import BEST, LAST
from tasks import CASES, Case, assert_same, signal_at, state

IMAGES = 6


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def root(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.data(tmp_path_factory.mktemp(case.task))


@pytest.fixture(scope="module")
def run(
    case: Case, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Train for two epochs, evaluating each."""
    out = tmp_path_factory.mktemp(f"{case.task}-run")
    return out, fit(case.recipe_for(root, schedule__epochs=2, ema__decay=0.5), out)


@pytest.fixture
def foreign(case: Case, root: Path, tmp_path: Path) -> Path:
    """Save a model of these classes that no recipe trained."""
    model = get_task(case.task).new_model(case.recipe_for(root), case.classes)
    return model.save_pretrained(tmp_path / "foreign")


def test_the_table_is_complete() -> None:
    assert set(CASES) == set(TASKS)


# Splits and what they hold.


def test_a_split_of_its_own_is_kept(case: Case, root: Path) -> None:
    splits = get_task(case.task).training().open_data(case.recipe_for(root)).splits
    names = {
        split: sorted(Path(samples.name(i)).name for i in range(len(samples)))
        for split, samples in (("train", splits.train), ("val", splits.val))
    }
    assert names["val"] == sorted(path.name for path in case.images(root, "val"))
    assert set(names["train"]) <= {path.name for path in case.images(root, "train")}
    assert splits.evaluated is splits.val
    assert splits.classes == case.classes


@pytest.mark.parametrize(("train", "val"), [("Train", "Valid"), ("training", "VALIDATION")])
def test_splits_have_many_names(
    case: Case, train: str, val: str, root: Path, tmp_path: Path
) -> None:
    """Capitals and the usual other words name the same splits in every task."""
    shutil.copytree(root, tmp_path / "data")
    for old, new in (("train", train), ("val", val)):
        for path in sorted((tmp_path / "data").rglob(f"{old}*"), reverse=True):
            if path.is_dir() and path.name == old:
                path.rename(path.with_name(new))
            elif path.suffix == ".json":
                path.rename(path.with_name(f"{new}.json"))
    found = get_task(case.task).training().open_data(case.recipe_for(tmp_path / "data")).splits
    expected = get_task(case.task).training().open_data(case.recipe_for(root)).splits
    assert (len(found.train), len(found.val)) == (len(expected.train), len(expected.val))
    assert found.classes == expected.classes


def test_without_a_split_some_images_are_held_out(case: Case, tmp_path: Path) -> None:
    recipe = case.recipe_for(case.undivided(tmp_path, 10), data__val_fraction=0.3)
    opened = [get_task(case.task).training().open_data(recipe).splits for _ in range(2)]
    names = [
        [{s.name(i) for i in range(len(s))} for s in (splits.train, splits.val)]
        for splits in opened
    ]
    assert names[0] == names[1]  # the same ones each time
    train, val = names[0]
    assert not train & val
    assert len(val) == 3


def test_each_image_is_validated_on_in_one_fold(case: Case, tmp_path: Path) -> None:
    data = case.undivided(tmp_path / "data", 10)
    held: list[str] = []
    for fold in range(3):
        recipe = case.recipe_for(data, data__folds=3, data__fold=fold)
        splits = get_task(case.task).training().open_data(recipe).splits
        held += [splits.val.name(i) for i in range(len(splits.val))]
        assert not {*held[-len(splits.val) :]} & {
            splits.train.name(i) for i in range(len(splits.train))
        }
    assert sorted(held) == sorted({*held})
    assert len(held) == 10
    divided = case.recipe_for(case.data(tmp_path / "divided"), data__folds=2)
    with pytest.raises(ValueError, match=r"data\.folds is 2, but .* has a validation split"):
        get_task(case.task).training().open_data(divided).train_loader()
    for folds, fold in ((3, 3), (1, 0), (0, 1)):
        with pytest.raises(ValueError, match=rf"data\.fold is {fold} and data\.folds is {folds}"):
            case.recipe_for(data, data__folds=folds, data__fold=fold)


def test_val_fraction_is_a_fraction(case: Case, root: Path) -> None:
    for fraction in (-0.1, 1.5):
        with pytest.raises(ValueError, match=r"data\.val_fraction is .*at least 0 and at most 1"):
            case.recipe_for(root, data__val_fraction=fraction)


def test_a_model_trained_elsewhere_is_evaluated_on_everything(
    case: Case, foreign: Path, tmp_path: Path
) -> None:
    data = case.undivided(tmp_path / "data", 10)
    words = ["--data.root", str(data), "--trainer.accelerator", "cpu", "--data.num_workers", "0"]
    if case.task == "segmentation":
        words += ["--data.crop", "48", "--inference.min_size", "48"]
    assert evaluate(foreign, overrides=words)["images"] == 10


# Classes.


def test_other_classes_are_refused(case: Case, root: Path, foreign: Path) -> None:
    model = rmt.load(foreign)
    names = [f"other {name}" for name in case.classes]
    model.info["label_names"] = names
    words = ["--data.root", str(root), "--trainer.accelerator", "cpu"]
    with pytest.raises(ValueError, match=f"other classes than the data has: .*{names[0]}"):
        evaluate(model, overrides=words)


def test_a_class_may_have_no_images(
    case: Case, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a model is evaluated, the classes are the model's; and what was found is said."""
    shutil.copytree(root, tmp_path / "data")
    (tmp_path / "data" / "classes.txt").unlink(missing_ok=True)  # masks number the classes
    model = get_task(case.task).new_model(case.recipe_for(root), [*case.classes, "rare"])
    model.info["label_names"] = [*case.classes, "rare"]
    words = ["--data.root", str(tmp_path / "data"), "--data.num_workers", "0"]
    words += ["--trainer.accelerator", "cpu"]
    if case.task == "segmentation":
        words += ["--data.crop", "48", "--inference.min_size", "48"]
    assert evaluate(model, overrides=words)["images"] == IMAGES
    found = capsys.readouterr().out
    assert "data: " in found
    assert f"{len(case.classes) + 1} classes ({', '.join(case.classes)}, rare)" in found


def test_another_number_of_classes_is_refused(case: Case, root: Path) -> None:
    recipe = case.recipe_for(root)
    model = get_task(case.task).new_model(recipe, [*case.classes, "one more"])
    del model.info["label_names"]
    with pytest.raises(ValueError, match=rf"has {len(case.classes) + 1} classes and the data"):
        evaluate(model, overrides=["--data.root", str(root)])
    with pytest.raises(ValueError, match=r"model\.num_classes is 77 and the data has"):
        fit(case.recipe_for(root, model__num_classes=77), root / "nowhere")


def test_class_names_travel_with_the_weights(case: Case, run: tuple[Path, dict[str, Any]]) -> None:
    assert tuple(rmt.load(run[0]).info["label_names"]) == case.classes


def test_weights_do_not_say_where_they_were_made(
    case: Case, run: tuple[Path, dict[str, Any]], root: Path
) -> None:
    for name in ("model.safetensors", "config.json"):
        assert str(root).encode() not in (run[0] / name).read_bytes()
    assert rmt.load(run[0]).info["recipe"]["data"]["root"] == root.name


# Training.


def test_a_finished_run_keeps_everything(
    case: Case, root: Path, run: tuple[Path, dict[str, Any]]
) -> None:
    out, metrics = run
    monitor = get_task(case.task).monitor(case.recipe_for(root))
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert metrics["test"]["images"] == IMAGES
    assert monitor in metrics["test"]
    assert [record["epoch"] for record in metrics["history"]] == [0, 1]
    scores = [
        max(record[f"{weights}/{monitor}"] for weights in ("raw", "ema"))
        for record in metrics["history"]
    ]
    assert metrics[f"val_{monitor}"] == max(scores)
    assert metrics["split"] == "val"
    assert for_people(evaluate(out)) == metrics["test"]
    assert {"recipe.yaml", "config.json", "model.safetensors"} <= {p.name for p in out.iterdir()}


def test_the_report(case: Case, run: tuple[Path, dict[str, Any]]) -> None:
    shown = report.write(run[0])
    assert {"metrics.json", "learning_curve.png", "predictions.png"} <= set(shown)
    assert all((run[0] / "report" / name).stat().st_size > 0 for name in shown)


def test_the_best_weights_and_their_score_are_one_fact(
    case: Case, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is moved between two epochs keeps both."""
    recipe = case.recipe_for(root, schedule__epochs=3, optimizer__lr=1e-12)
    steps = IMAGES // 2 + 1
    signal_at(monkeypatch, steps)
    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "here")
    monkeypatch.undo()
    (tmp_path / "here").rename(tmp_path / "there")
    metrics = fit(recipe, tmp_path / "there", resume=True)
    kept = torch.load(tmp_path / "there" / BEST, weights_only=True)["rmt"]["best"]
    monitor = get_task(case.task).monitor(recipe)
    assert metrics[f"val_{monitor}"] == for_people(kept["score"])
    found = evaluate(tmp_path / "there" / BEST)  # there is no test split
    assert found[monitor] == pytest.approx(kept["score"])


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_is_exact(
    case: Case, root: Path, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of the second of three epochs, and continued: the same to the bit."""
    recipe = case.recipe_for(root, schedule__epochs=3, ema__decay=0.9, data__num_workers=workers)
    fit(recipe, tmp_path / "whole")
    signal_at(monkeypatch, IMAGES // 2 + 2)
    with pytest.raises(Interrupted, match="--resume"):
        fit(recipe, tmp_path / "parts")
    monkeypatch.undo()
    fit(recipe, tmp_path / "parts", resume=True)
    for file in (LAST, BEST):
        assert_same(state(tmp_path / "parts", file), state(tmp_path / "whole", file))


def test_samples_in_memory_are_the_same_and_are_not_read_again(case: Case, tmp_path: Path) -> None:
    data = case.data(tmp_path / "data")
    loaders = [
        get_task(case.task)
        .training()
        .open_data(case.recipe_for(data, data__num_workers=0, data__cache_gb=limit))
        .train_loader()
        for limit in (0.0, 1.0)
    ]
    expected, found = map(list, loaders)
    assert_same(found, expected)
    for path in case.images(data, "train"):
        path.unlink()
    assert_same(list(loaders[1]), expected)


def test_frozen_parts_stay(case: Case, root: Path, tmp_path: Path) -> None:
    """Weights and batch-norm statistics alike, also where the whole backbone is in training."""
    recipe = case.recipe_for(root, model__freeze=[case.stem])
    torch.manual_seed(recipe.seed)
    fit(recipe, tmp_path)
    trained = torch.load(tmp_path / LAST, weights_only=True)["state_dict"]
    frozen = {k: v for k, v in trained.items() if k.startswith(f"model.{case.stem}.")}
    statistics = [v for k, v in frozen.items() if k.endswith(("running_mean", "running_var"))]
    assert statistics
    assert all(torch.equal(v, v.flatten()[0].expand_as(v)) for v in statistics)  # 0 and 1
    others = [v for k, v in trained.items() if k.endswith("running_mean") and k not in frozen]
    assert any(v.abs().sum() > 0 for v in others)
    with pytest.raises(ValueError, match=r"model\.freeze names 'nothing'"):
        fit(case.recipe_for(root, model__freeze=["nothing"]), tmp_path / "other")


def test_bad_samples_are_counted_and_named(
    case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = case.data(tmp_path / "data")
    bad = [case.images(data, "train")[1], case.images(data, "val")[0]]
    for path in bad:
        path.write_bytes(b"\x89PNG broken")
    with caplog.at_level(logging.WARNING):
        metrics = fit(case.recipe_for(data, schedule__epochs=2), tmp_path / "run")
    assert metrics["test"]["images"] == IMAGES - 1
    for path in bad:
        assert path.name in caplog.text
    report.write(tmp_path / "run")
    with pytest.raises(ValueError, match=r"data\.max_bad_samples=0 .*unreadable"):
        fit(case.recipe_for(data, data__max_bad_samples=0), tmp_path / "strict")


# Evaluation.


def test_evaluation_sees_each_image_once_on_any_number_of_processes(case: Case, root: Path) -> None:
    for batch_size in (1, 4):
        recipe = case.recipe_for(root, data__batch_size=batch_size)
        data = get_task(case.task).training().open_data(recipe)
        for world in (1, 2, 4):
            loaders = [
                data.eval_loader(data.splits.val, rank=rank, world=world) for rank in range(world)
            ]
            indices = sorted(i for own in loaders for keys in own.batch_sampler for _, i, _ in keys)
            assert indices == list(range(IMAGES))


def test_evaluation_is_the_same_at_any_batch_size(
    case: Case, run: tuple[Path, dict[str, Any]]
) -> None:
    for size in ("1", "5"):
        found = evaluate(run[0], overrides=["--data.batch_size", size])
        assert found == pytest.approx(run[1]["test"], rel=1e-5)


@pytest.mark.slow
def test_two_processes_evaluate_like_one(
    case: Case, run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    words = ["--trainer.devices", "2", "--trainer.accelerator", "cpu"]
    words += ["--checkpoint", str(run[0]), "--json", str(tmp_path / "eval.json")]
    subprocess.run([sys.executable, "-m", "rmt_cli", "eval", *words], check=True, timeout=240)
    found = json.loads((tmp_path / "eval.json").read_text())["metrics"]
    assert found == pytest.approx(run[1]["test"], rel=1e-6)


def test_evaluating_leaves_the_model_as_it_was(case: Case, root: Path) -> None:
    model = get_task(case.task).new_model(case.recipe_for(root), case.classes).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    words = ["--data.root", str(root), "--trainer.accelerator", "cpu", "--data.num_workers", "0"]
    if case.task == "segmentation":
        words += ["--data.crop", "48", "--inference.min_size", "48"]
    evaluate(model, overrides=words)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# Prediction.


def test_prediction_records(
    case: Case, root: Path, run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    photos = case.images(root, "val")[:2]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    absent = tmp_path / "absent.png"
    records = list(predict_files([*photos, broken, absent], run[0], out=tmp_path / "out"))
    assert json.loads(json.dumps(records)) == records
    assert [record["image"] for record in records] == [
        str(path) for path in (*photos, broken, absent)
    ]
    assert ["error" in record for record in records] == [False, False, True, True]
    assert "broken.png" in records[2]["error"]
    for photo, record in zip(photos, records, strict=False):
        if "size" in record:
            assert record["size"] == list(read_image(photo).size[::-1])
        assert (tmp_path / "out" / f"{photo.stem}.png").is_file()


def test_batches_give_the_records_of_single_images(
    case: Case, root: Path, run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    photos = [photo for split in ("train", "val") for photo in case.images(root, split)[:4]]
    for i, size in enumerate([(40, 30), (30, 40), (40, 30), (41, 30)]):
        path = tmp_path / f"{i}.png"
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)).save(path)
        photos.insert(2 * i, path)
    (tmp_path / "broken.png").write_bytes(b"not an image")
    photos.insert(3, tmp_path / "broken.png")
    one_by_one = list(predict_files(photos, run[0], device="cpu", batch_size=1))
    batches = list(predict_files(photos, run[0], device="cpu", batch_size=3))
    assert [record["image"] for record in batches] == [str(photo) for photo in photos]
    assert_near(batches, one_by_one)


def assert_near(ours: Any, expected: Any) -> None:
    """Compare nested values; numbers may differ by rounding."""
    if isinstance(expected, dict):
        assert ours.keys() == expected.keys()
        ours, expected = list(ours.values()), list(expected.values())
    if isinstance(expected, list):
        assert len(ours) == len(expected)
        for one, other in zip(ours, expected, strict=True):
            assert_near(one, other)
    elif isinstance(expected, float):
        assert ours == pytest.approx(expected, rel=1e-5, abs=1e-5)
    else:
        assert ours == expected


def test_options_of_prediction(case: Case, run: tuple[Path, dict[str, Any]]) -> None:
    name, good, bad = case.options
    model = rmt.load(run[0])
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    assert Predictor(model, device="cpu", **{name: good})(image)
    with pytest.raises(ValueError, match=rf"{name} is {bad}"):
        Predictor(model, **{name: bad})
    with pytest.raises(ValueError, match=rf"'{name}s' is not an option .*did you mean '{name}'"):
        Predictor(model, **{f"{name}s": good})
    with pytest.raises(ValueError, match="device 'moon' cannot be used"):
        Predictor(model, device="moon")


def test_prediction_leaves_grey_and_colour_alike(
    case: Case, run: tuple[Path, dict[str, Any]]
) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (50, 70)).astype(np.uint8)
    predictor = Predictor(rmt.load(run[0]), device="cpu")
    first, second = predictor(grey), predictor(np.repeat(grey[..., None], 3, axis=2))
    assert str(first) == str(second)


# The recipe.


def test_the_dry_run(case: Case, root: Path) -> None:
    recipe = case.recipe_for(root)
    words = [f"--data.root={root}", "--data.batch_size=2", "--data.num_workers=0"]
    words += [f"--{key}={value}" for key, value in case.keys.items()]
    described = dry_run(case.recipe, words, try_data=True)
    assert described["data"]["classes"] == list(case.classes)
    assert described["data"]["val"] == IMAGES
    assert described["recipe"]["data"]["root"] == str(root)
    assert described["params"] == sum(
        p.numel() for p in get_task(case.task).new_model(recipe, case.classes).parameters()
    )
    assert f"{IMAGES} val images" in show(described)
    with pytest.raises(ValueError, match=r"is not a folder|does not exist"):
        get_task(case.task).training().open_data(
            replace(recipe, data=replace(recipe.data, root="/nowhere/at/all"))
        )


def test_unknown_keys_name_the_nearest(case: Case, root: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown recipe key 'data\.batchsize'.*batch_size"):
        case.recipe_for(root, data__batchsize=2)


def test_compiled_and_checkpointed(case: Case, root: Path) -> None:
    """Both switches reach the network of every task."""
    recipe = case.recipe_for(root, trainer__grad_checkpointing="true")
    model = get_task(case.task).new_model(recipe, case.classes)
    model.set_grad_checkpointing()
    assert model.body.grad_checkpointing
    assert callable(model.compiled())
    assert isinstance(model, nn.Module)


# Data that change between runs.


@pytest.fixture
def cut(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Any]:
    """Stop a run on an undivided data set; return the run's folder, the data and the recipe."""
    data = case.undivided(tmp_path / "data", 10)
    recipe = case.recipe_for(data, schedule__epochs=2, data__val_fraction=0.3)
    with monkeypatch.context() as patch:
        signal_at(patch, 2)
        with pytest.raises(Interrupted):
            fit(recipe, tmp_path / "run")
    return tmp_path / "run", data, recipe


def test_changed_data_are_refused_or_allowed(case: Case, cut: tuple[Path, Path, Any]) -> None:
    """One more image would change which images are held out; if allowed, these stay the same."""
    run, data, recipe = cut
    before = {
        split: set(names) for split, names in DataRecord.read(run / "data.json.gz").splits.items()
    }
    case.add_image(data)
    with pytest.raises(ValueError, match=r"the data have changed since .*1 added: .*new.*allow_ch"):
        fit(recipe, run, resume=True)
    allowed = replace(recipe, data=replace(recipe.data, allow_changed=True))
    metrics = fit(allowed, run, resume=True)
    after = {
        split: set(names) for split, names in DataRecord.read(run / "data.json.gz").splits.items()
    }
    assert after["val"] == before["val"]
    assert len(after["train"]) == len(before["train"]) + 1
    assert metrics["test"]["images"] == len(before["val"])
    assert evaluate(run)["images"] == len(before["val"])


def test_moved_data_are_the_same_data(case: Case, cut: tuple[Path, Path, Any]) -> None:
    run, data, recipe = cut
    data.rename(data.with_name("elsewhere"))
    moved = replace(recipe, data=replace(recipe.data, root=str(data.with_name("elsewhere"))))
    fit(moved, run, resume=True)
