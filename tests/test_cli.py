"""The command: every verb on real data, exit codes, messages for mistakes, and quick help."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import rmt
import rmt_cli
from rmt.data.images import read_image
from rmt.modeling import flops
from rmt.recipes import list_recipes
from rmt.segmentation.toy import SHAPES, toy
from rmt.task import TASKS, get_task
from rmt.tools import demo
from rmt.training.fit import fit, load_recipe

QUICK = ["--schedule.epochs=1", "--data.batch_size=128"]
# Modules that help must not import, so that it is quick.
HEAVY = ("torch", "timm", "lightning", "PIL", "numpy", "rmt")


def call(*words: object) -> int:
    return rmt_cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a short run on the digits, trained by the command."""
    out = tmp_path_factory.mktemp("run") / "digits"
    assert call("train", "small/digits", "--out", out, *QUICK) == 0
    return out


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "grey.png"
    Image.linear_gradient("L").resize((90, 60)).save(path)
    return path


def test_training_leaves_a_whole_folder(run: Path) -> None:
    for file in ("recipe.yaml", "config.json", "model.safetensors", "metrics.json"):
        assert (run / file).stat().st_size
    for file in ("last.ckpt", "best.ckpt"):
        assert (run / "checkpoints" / file).stat().st_size
    report = {path.name for path in (run / "report").iterdir()}
    assert report == {
        "metrics.json",
        "learning_curve.png",
        "classes.json",
        "recall.png",
        "confusion.png",
        "predictions.png",
        "decay.png",
        "attention.png",
    }
    assert list(run.glob("logs/**/metrics.csv"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["task"] == "classification"
    assert metrics["test"]["images"] == 360
    assert 0 <= metrics["test"]["top1"] <= metrics["test"]["top5"] <= 100
    assert metrics["history"][0]["step"] == 10
    assert yaml.safe_load((run / "recipe.yaml").read_text())["data"]["batch_size"] == 128


def test_eval(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe is saved with the weights, and the metrics are those of the run."""
    expected = json.loads((run / "metrics.json").read_text())["test"]
    for checkpoint in (run, run / "model.safetensors", run / "checkpoints" / "best.ckpt"):
        file = tmp_path / "deep" / "eval.json"
        assert (
            call("eval", "--checkpoint", checkpoint, "--json", file, "--data.batch_size", "100")
            == 0
        )
        found = json.loads(file.read_text())
        assert found["checkpoint"]["path"] == str(checkpoint)
        weights = checkpoint / "model.safetensors" if checkpoint == run else checkpoint
        wanted = hashlib.sha256(weights.read_bytes()).hexdigest()
        assert found["checkpoint"]["sha256"] == wanted
        assert found["data"]["images"] == found["metrics"]["images"] == 360
        assert found["versions"]["rmt"] == rmt.__version__
        assert found["overrides"] == ["--data.batch_size", "100"]
        assert found["recipe"]["data"]["batch_size"] == 100
        assert found["metrics"] == pytest.approx(expected)
    assert "top1" in capsys.readouterr().out


def test_predict(
    run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_text("not an image")
    words = [photo, tmp_path / "bad.png", photo, "--checkpoint", run, "--top", "3"]
    assert call("predict", *words, "--json", tmp_path / "p.json", "--out", tmp_path / "seen") == 1
    records = json.loads((tmp_path / "p.json").read_text())
    assert [record["image"] for record in records] == [str(word) for word in words[:3]]
    assert records[1].keys() == {"image", "error"}
    assert records[0] == records[2]
    assert records[0].keys() == {"image", "top"}
    assert len(records[0]["top"]) == 3
    for found in records[0]["top"]:
        assert found.keys() == {"label", "name", "score"}
        assert found["name"] == str(found["label"])
    scores = [found["score"] for found in records[0]["top"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == [
        "grey.png",
        "grey_1.png",
    ]
    out = capsys.readouterr().out
    assert f"{photo}  {records[0]['top'][0]['name']} " in out
    assert call("predict", photo, "--checkpoint", run) == 0


def test_predictor(run: Path, photo: Path) -> None:
    predictor = rmt.Predictor.from_checkpoint(run, top=2)
    prediction = predictor(photo)
    assert len(prediction["top"]) == 2
    with Image.open(photo) as image:
        assert predictor(image) == prediction
    streamed = list(predictor.stream([photo, "gone.png"]))
    assert streamed[0] == {"image": str(photo)} | prediction
    assert streamed[1].keys() == {"image", "error"}
    with pytest.raises(ValueError, match="top is 0"):
        rmt.Predictor.from_checkpoint(run, top=0)
    with pytest.raises(ValueError, match="device 'nonsense' cannot be used"):
        rmt.Predictor.from_checkpoint(run, device="nonsense")


SLIDING = "--min-size 64 --window 32 --stride 20 --scales 0.5,1,1.75 --flip"


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a randomly initialised segmenter that predicts each class."""
    torch.manual_seed(0)
    model = rmt.create_segmenter("semantic_fpn", "rmt_nano", num_classes=3, channels=8).eval()
    with torch.no_grad():
        mean = model(torch.randn(1, 3, 64, 64)).mean((0, 2, 3))
        model.head.classifier.conv.bias -= mean
    model.info["label_names"] = list(SHAPES)
    folder = tmp_path_factory.mktemp("segmenter")
    model.save_pretrained(folder)
    return folder


def test_predict_by_windows_and_scales(segmenter: Path, tmp_path: Path) -> None:
    """The options reach the model: the label map is that of the same call in Python."""
    photo = toy(tmp_path / "toy", images=1) / "images" / "val" / "val_0.jpg"
    words = ["predict", photo, "--checkpoint", segmenter, "--out", tmp_path / "seen"]
    assert call(*words, "--json", tmp_path / "p.json", *SLIDING.split()) == 0
    (record,) = json.loads((tmp_path / "p.json").read_text())
    with Image.open(record["labels_png"]) as image:
        labels = np.asarray(image)
    options = {"min_size": 64, "window": 32, "stride": 20, "scales": (0.5, 1.0, 1.75), "flip": True}
    expected = rmt.Predictor.from_checkpoint(segmenter, **options)(photo)
    assert np.array_equal(labels, expected["labels"])
    assert record["classes"] == expected["classes"]
    plain = rmt.Predictor.from_checkpoint(segmenter, min_size=64)(photo)
    assert not np.array_equal(labels, plain["labels"])
    assert call(*words, "--min-size", "64", "--no-flip", "--json", tmp_path / "q.json") == 0
    assert json.loads((tmp_path / "q.json").read_text())[0]["classes"] == plain["classes"]


def test_eval_by_windows_and_scales(segmenter: Path, tmp_path: Path) -> None:
    """The same options are keys of the recipe, in section ``inference``."""
    words = ["eval", "--checkpoint", segmenter, "--data.root", toy(tmp_path / "toy", images=1)]
    words += ["--data.num_workers=0", "--trainer.accelerator=cpu", "--inference.min_size=64"]
    found = []
    for extra in (
        "",
        "--inference.window=32 --inference.scales=[0.5,1,1.75] --inference.flip=true",
    ):
        assert call(*words, *extra.split(), "--json", tmp_path / "e.json") == 0
        found.append(json.loads((tmp_path / "e.json").read_text())["metrics"])
    assert found[0].keys() >= {"mIoU", "mAcc", "aAcc"}
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--score 0.5", "'score' is not an option of a segmentation model"),
        ("--window 32 --stride 40", "inference.stride is 40 and inference.window is 32"),
        ("--scales 0,1", "inference.scales is 0.0; it must be greater than 0"),
    ],
)
def test_mistakes_in_options_of_a_task(
    words: str, message: str, segmenter: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("predict", photo, "--checkpoint", segmenter, *words.split()) == 2
    assert message in capsys.readouterr().err


def test_options_of_another_task(
    run: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("predict", photo, "--checkpoint", run, "--window", "32") == 2
    message = "'window' is not an option of a classification model (known: top, score)\n"
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        call("predict", photo, "--checkpoint", run, "--scales", "half")
    assert "is not a list of numbers; write 0.5,1,1.5" in capsys.readouterr().err


@pytest.mark.parametrize("task", TASKS)
def test_the_command_has_every_option_of_prediction(
    task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call("predict", "--help")
    shown = capsys.readouterr().out
    for option in fields(get_task(task).prediction().options):
        if option.name != "pad":  # saved with the weights
            assert f"--{option.name.replace('_', '-')}" in shown


def test_convert(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "digits.safetensors"
    assert call("convert", run / "checkpoints" / "last.ckpt", target) == 0
    assert capsys.readouterr().out.strip() == str(target)
    assert rmt.load(target).info["label_names"] == list("0123456789")
    assert call("convert", run, target, "--weights", "raw") == 0


def test_explain(
    run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["explain", photo, "--checkpoint", run, "--at", "0.25,1", "--out", tmp_path]
    assert call(*words) == 0
    paths = [Path(line) for line in capsys.readouterr().out.split()]
    assert [path.name for path in paths] == ["attention.png", "decay.png"]
    assert all(read_image(path).width > 300 for path in paths)
    assert call("explain", photo, "--checkpoint", run, "--at", "2,0") == 2
    with pytest.raises(SystemExit):
        call("explain", photo, "--checkpoint", run, "--at", "centre")
    assert "is not a position; write y,x such as 0.5,0.5" in capsys.readouterr().err


def test_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("models", "--json", tmp_path / "models.json") == 0
    table = json.loads((tmp_path / "models.json").read_text())
    assert table == flops.model_table(), "run python -m rmt.modeling.flops"
    assert set(rmt.list_models()) <= set(table)
    keys = {"params", "macs", "published_gmacs_fvcore_1024", "top1_published"}
    assert all(keys <= row.keys() for row in table.values())
    assert (table["rmt_t"]["params"], table["rmt_t"]["top1_published"]) == (14_334_216, 82.4)
    shown = capsys.readouterr().out
    assert "rmt_t           14,334,216" in shown
    assert shown == f"{flops.format_table(table)}\n"


@pytest.mark.parametrize(
    ("words", "last"),
    [(["models"], "units of 1e9."), (["--version"], f"rmt {rmt.__version__}")],
)
def test_without_torch(words: list[str], last: str) -> None:
    """Counting and importing take seconds."""
    code = "import atexit, rmt_cli, sys; atexit.register(lambda: print(*sys.modules)); "
    command = [sys.executable, "-c", f"{code} rmt_cli.main({words})"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shown, modules = done.stdout.rstrip().rsplit("\n", 1)
    assert shown.endswith(last)
    assert "torch" not in modules.split()


def test_list_and_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list_recipes()
    assert any(re.fullmatch(r"imagenet/rmt_s +RMT-S on ImageNet-1K", line) for line in lines)
    assert call("train", "small/digits", "--print_config", "--optimizer.lr", "0.5") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["optimizer"]["lr"] == 0.5
    assert shown["data"]["max_bad_samples"] == 100  # a default that the recipe does not set


def test_print_config_is_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "small/folder", "--print_config") == 0
    path = tmp_path / "mine.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_recipe(path) == load_recipe("small/folder")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train small/digit", "no recipe 'small/digit'; did you mean 'small/digits'?"),
        ("train gone.yaml", "no recipe file 'gone.yaml'"),
        ("train small/digits --optimiser.lr 1", "did you mean 'optimizer'?"),
        ("train small/digits --optimizer.lrr 1", "did you mean 'lr'?"),
        ("train small/digits --optimizer.lr fast", "optimizer.lr"),
        ("train small/digits --optimizer.lr", "--optimizer.lr has no value"),
        (
            "train small/digits --data.batch_size.size 3",
            "unknown recipe key 'data.batch_size.size'",
        ),
        ("train small/digits --model.name rmt_nao", "did you mean 'rmt_nano'?"),
        ("train small/digits --schedule.steps 9", "exactly one of them"),
        ("train small/folder --data.root /nowhere", "data.root '/nowhere' does not exist"),
        ("eval --checkpoint gone.pth", "no file or folder 'gone.pth'"),
        ("predict gone.jpg --checkpoint gone.pth", "there is no file or folder 'gone.jpg'"),
        ("train small/digits --data.batch_size 0", "data.batch_size is 0; it must be at least 1"),
        ("train small/digits --data.input_size 0", "data.input_size is 0"),
        ("train small/digits --trainer.devices 0", "trainer.devices is 0"),
        ("train small/digits --trainer.threads -1", "trainer.threads is -1"),
        ("train small/digits --schedule.epochs -5", "schedule.epochs is -5"),
        ("train small/digits --trainer.precision half", "trainer.precision"),
        ("train small/digits --trainer.accelerator tpu", "trainer.accelerator 'tpu' with"),
        ("train small/digits --devices 2", "did you mean 'trainer.devices'?"),
        ("train small/digits --json x.json", "--json goes with --dry-run"),
        ("train --data.root=X", "name a recipe"),
        ("train small/digits --model.freeze [stem,stages,head]", "leaves nothing to train"),
        (
            "train small/digits --model.freeze [stages.10]",
            "'stages.10'; the model has no parameter there",
        ),
        ("train imagenet/rmt_t --dry-run --optimizer.lr -1", "optimizer.lr is -1"),
        ("train imagenet/rmt_t --dry-run --trainer.strategy no", "unknown trainer.strategy 'no'"),
        ("train imagenet/rmt_t --dry-run --model.checkpoint gone.pth", "no file or folder"),
        ("train imagenet/rmt_s_tl --dry-run --token_labels.teacher resnet1", "unknown teacher"),
        ("convert gone.pth x.safetensors", "no file or folder 'gone.pth'"),
        ("explain gone.png --checkpoint gone.pth", "no file or folder 'gone.pth'"),
    ],
)
def test_mistakes(
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("rmt: ")
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("words", ["", "fly", "explain x.jpg", "convert a b --lr 1"])
def test_invalid_calls(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        call(*words.split())
    assert stop.value.code == 2
    assert "usage: rmt" in capsys.readouterr().err


def test_help_is_quick() -> None:
    """The help of no verb imports what only running it needs."""
    verbs = [[], *([verb] for verb in ("models", "train", "eval", "predict", "convert"))]
    verbs += [["export"], ["explain"], ["make-token-labels"], ["convert-dataset"], ["demo"]]
    code = (
        "import contextlib, io, json, sys\n"
        "import rmt_cli\n"
        "texts = []\n"
        f"for words in {verbs}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as text:\n"
        "        try: rmt_cli.main([*words, '--help'])\n"
        "        except SystemExit as stop: assert stop.code == 0\n"
        "    texts.append(text.getvalue())\n"
        f"print(json.dumps([texts, [m for m in {HEAVY} if m in sys.modules]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    texts, imported = json.loads(done.stdout)
    assert imported == []
    assert all(text.startswith("usage: rmt") for text in texts)
    for verb, text in zip(verbs[1:], texts[1:], strict=True):
        assert verb[0] in texts[0]
        assert "--help" in text


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_exit_status_of_an_interrupted_run(number: int, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "rmt_cli", "train", "small/digits", "--out", str(out)]
    command += ["--data.batch_size=32", "--trainer.save_every=1"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not (out / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert "repeat the command with --resume to continue" in error


def test_resuming_takes_the_recipe_of_the_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options of the first call need not be repeated."""
    import rmt.tools.train

    taken = []

    def record(recipe: object, out: Path, *, resume: bool) -> dict:
        taken.append(recipe)
        return {}

    monkeypatch.setattr(rmt.tools.train, "fit", record)
    assert call("train", "small/digits", "--out", run, "--resume", "--trainer.devices=1") == 0
    assert (taken[0].data.batch_size, taken[0].trainer.devices) == (128, 1)


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """As `make demo` runs it, but with a short training."""
    train = demo.train
    monkeypatch.setattr(demo, "train", lambda name, out: train(name, overrides=QUICK, out=out))
    out = tmp_path / "demo"
    (out / "checkpoints").mkdir(parents=True)
    for file in (demo.MARKER, "recipe.yaml", "checkpoints/last.ckpt"):
        (out / file).write_text("of an earlier demo, which is replaced")
    assert call("demo", "--out", out) == 0
    shown = capsys.readouterr().out
    assert f"Look at {out / 'report'}" in shown
    assert "rmt train small/folder --data.root" in shown
    assert len(list((out / "test-images").iterdir())) == demo.PREDICTED
    assert len(list((out / "predicted").iterdir())) == demo.PREDICTED


def test_demo_refuses_other_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert call("demo", "--out", tmp_path) == 2
    assert "is not empty and was not made by `rmt demo`" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").exists()


def test_the_report_of_an_unfinished_run(tmp_path: Path) -> None:
    from rmt.tools import report

    with pytest.raises(ValueError, match="holds no finished run"):
        report.write(tmp_path)


def test_evaluate_restores_the_mode(run: Path) -> None:
    from rmt.training.evaluate import evaluate

    model = rmt.load(run).train()
    evaluate(model, overrides=["--data.batch_size=360"])
    assert model.training


def test_a_missing_image_does_not_stop_prediction(run: Path, photo: Path, tmp_path: Path) -> None:
    words = [photo, tmp_path / "gone.png", photo, "--checkpoint", run]
    assert call("predict", *words, "--json", tmp_path / "p.json") == 1
    records = json.loads((tmp_path / "p.json").read_text())
    assert ["error" in record for record in records] == [False, True, False]
    assert "gone.png" in records[1]["error"]


@pytest.mark.usefixtures("unchecked_annotations")
def test_weights_are_called_what_they_are(run: Path, tmp_path: Path) -> None:
    kind = rmt.load(run).info["weights"]
    other = {"raw": "ema", "ema": "raw"}[kind]
    assert call("eval", "--checkpoint", run, "--weights", kind, "--json", tmp_path / "e.json") == 0
    assert json.loads((tmp_path / "e.json").read_text())["checkpoint"]["weights"] == kind
    assert call("eval", "--checkpoint", run, "--weights", other) == 2
    both = run / "checkpoints" / "best.ckpt"
    assert rmt.load(both, weights="raw").info["weights"] == "raw"
    with pytest.raises(ValueError, match="weights is 'best'; choose 'raw' or 'ema'"):
        rmt.load(both, weights="best")


def test_a_damaged_state_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"PK half a file")
    (tmp_path / "recipe.yaml").write_text((run / "recipe.yaml").read_text())
    with pytest.raises(
        ValueError, match=r"last\.ckpt is damaged: .*No state of this run can be resumed"
    ):
        fit(load_recipe(tmp_path / "recipe.yaml"), tmp_path, resume=True)


def test_a_checkpoint_holds_its_weights_once(run: Path) -> None:
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {key.split(".")[0] for key in state} <= {"model", "ema"}
