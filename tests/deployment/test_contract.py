"""What every export promises, in all tasks: by an engine that takes no time, see ``exports.py``."""

import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image
from torch import nn

import rmt
import rmt_cli
from exports import NAME, EagerEngine, writer
from rmt.deployment import engines, formats
from rmt.deployment.load import load_with_engine
from rmt.deployment.metadata import Metadata
from rmt.modeling.graphs import Exported
from rmt.modeling.pretrained import Pretrained
from rmt.task import get_task
from rmt.training.evaluate import record_evaluation
from tasks import CASES, Case

#: Task -> size of the export.
SIZES = {"classification": (32, 32), "detection": (64, 96), "segmentation": (48, 48)}
HEADS = [*CASES, pytest.param("two stages", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", autouse=True)
def eager() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(engines.FILE_ENGINES, NAME, EagerEngine)
        patch.setitem(formats.FORMATS, NAME, writer())
        yield


@pytest.fixture(scope="module", params=HEADS)
def head(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def case(head: str) -> Case:
    return CASES["detection" if head == "two stages" else head]


@pytest.fixture(scope="module")
def root(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return case.data(tmp_path_factory.mktemp(case.task))


@pytest.fixture(scope="module")
def checkpoint(case: Case, head: str, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a model with the recipe of a run, the paths of which no file may hold."""
    keys: dict[str, Any] = {
        "two stages": {"model__head": "mask_rcnn"},
        "segmentation": {"inference__min_size": 64},
    }.get(head, {})
    recipe = case.recipe_for(root, **keys)
    model = get_task(case.task).new_model(recipe, case.classes)
    model.info["recipe"] = rmt.recipes.as_dict(recipe)
    if head == "detection":
        nn.init.zeros_(model.head.cls.bias)  # else an untrained RetinaNet finds nothing
    return model.save_pretrained(tmp_path_factory.mktemp(f"{case.task}-run"))


@pytest.fixture(scope="module")
def exported(case: Case, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    size, out = SIZES[case.task], tmp_path_factory.mktemp("exported")
    return rmt.export(checkpoint, out / "made/model", format=NAME, img_size=size).path


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return [photo[::3, ::3] for photo in sklearn.datasets.load_sample_images().images]


def as_exported(model: Pretrained, task: str) -> Pretrained:
    """Let a model see images as its export does."""
    get_task(task).deployment().set_size(model, SIZES[task], any_size=False)
    return model


def text_of(exported: Path) -> str:
    file = exported / f"dense{EagerEngine.suffix}" if exported.is_dir() else exported
    return json.loads(file.read_text())["metadata"]


def assert_alike(found: Any, expected: Any) -> None:
    """Compare nested values; folding rounds in the sixth digit."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_alike(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for own, other in zip(found, expected, strict=True):
            assert_alike(own, other)
    elif isinstance(expected, np.ndarray):
        assert (found != expected).mean() < 1e-3
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-3)
    elif not isinstance(expected, bytes):
        assert found == expected or "counts" in str(expected) or isinstance(expected, str)


def test_it_predicts_what_the_checkpoint_does(
    case: Case, checkpoint: Path, exported: Path, photos: list[np.ndarray]
) -> None:
    predictor = rmt.Predictor.from_checkpoint(exported)
    assert isinstance(predictor.model, Exported)
    expected = rmt.Predictor(as_exported(rmt.load(checkpoint), case.task))
    for photo in photos:
        assert_alike(predictor(photo), expected(photo))


def test_it_is_evaluated_as_the_checkpoint_is(
    case: Case, checkpoint: Path, exported: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--data.root", str(root), "--data.num_workers", "0", "--trainer.accelerator", "cpu"]
    found = record_evaluation(exported, overrides=words)
    expected = rmt.training.evaluate.evaluate(
        as_exported(rmt.load(checkpoint), case.task), overrides=words
    )
    assert found["engine"] == NAME
    assert found["metrics"]["images"] == 6
    for name, value in expected.items():
        assert found["metrics"][name] == pytest.approx(value, abs=0.2), name


def test_the_file_says_what_it_is(case: Case, checkpoint: Path, exported: Path) -> None:
    text = text_of(exported)
    content = json.loads(text)
    assert content["task"] == case.task
    assert content["classes"] == list(case.classes)
    assert content["rmt_version"] == rmt.__version__
    assert content["transforms"]["size"] == list(SIZES[case.task])
    assert {"mean", "std", "interpolation", "batch", "dynamic"} <= content["transforms"].keys()
    assert re.fullmatch("[0-9a-f]{64}", content["sha256_of_weights"])
    assert content["info"]["recipe"]["data"]["num_workers"] == 0
    assert not re.search(r"/tmp|/home|pytest-of", text)
    about = Metadata.read(text, "x")
    assert about.text() == text


def test_names_and_sizes_of_the_file_are_those_of_the_model(case: Case, exported: Path) -> None:
    model = load_with_engine(exported)
    assert model.info["label_names"] == list(case.classes)
    assert model.task == case.task
    assert not model.training
    with pytest.raises(ValueError, match="gives predictions, not features"):
        rmt.tools.predict.Embedder(model)(Image.new("RGB", (64, 64)))


def test_what_is_there_is_kept(case: Case, checkpoint: Path, exported: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in exported.parent.rglob("*")}
    with pytest.raises(ValueError, match="is there already: name another"):
        rmt.export(checkpoint, exported, format=NAME, img_size=SIZES[case.task])
    assert {path: path.stat().st_mtime_ns for path in exported.parent.rglob("*")} == before


def test_a_wrong_export_is_not_kept(
    case: Case, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(formats.FORMATS, NAME, writer(0.05))
    with pytest.raises(ValueError, match=r"was not kept: on \w+ \d+×.* it differs"):
        rmt.export(checkpoint, tmp_path / "out/m", format=NAME, img_size=SIZES[case.task])
    assert not [*(tmp_path / "out").iterdir()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photos: list[np.ndarray]) -> Path:
    """Return twelve crops of photos."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(12):
        photo = photos[i % 2]
        Image.fromarray(photo[6 * i :, 10 * i :]).save(folder / f"{i:02}.jpg")
    return folder


def test_eight_bits_must_agree(
    case: Case, checkpoint: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By noise in place of rounding."""
    monkeypatch.setattr("rmt.deployment.export.INT8", (NAME,))
    monkeypatch.setattr(f"rmt.{case.task}.graphs.SHOWN_SCORE", 0.05, raising=False)
    options: dict[str, Any] = {"format": NAME, "img_size": SIZES[case.task], "int8": True}
    report = rmt.export(checkpoint, tmp_path / "good", **options, calibration=folder)
    ((name, percent),) = report.agreement.items()
    assert "agreement" in name
    assert percent == pytest.approx(100, abs=1)
    assert json.loads(text_of(report.path))["int8"] is True
    monkeypatch.setitem(formats.FORMATS, NAME, writer(3.0 if case.task != "detection" else 0.3))
    with pytest.raises(ValueError, match=r"8 bits was not kept: .* below 9[89] %"):
        rmt.export(checkpoint, tmp_path / "bad", **options, calibration=folder)
    assert not [*tmp_path.glob("bad*")]
    kept = rmt.export(checkpoint, tmp_path / "bad", **options, calibration=folder, force=True)
    assert kept.path.exists()


# One model is enough for what follows.


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a small classifier."""
    model = rmt.create_model("rmt_nano", num_classes=3)
    return model.save_pretrained(tmp_path_factory.mktemp("small"))


@torch.no_grad()
def test_batches_are_cut_and_filled(small: Path, tmp_path: Path) -> None:
    made = rmt.export(small, tmp_path / "m", format=NAME, img_size=32, batch_size=4)
    found, expected = load_with_engine(made.path), rmt.load(small)
    for count in (1, 3, 4, 9):
        images = torch.randn(count, 3, 32, 32)
        assert torch.allclose(found(images), expected(images), atol=1e-5), count


def test_a_static_file_names_its_size(small: Path, tmp_path: Path) -> None:
    made = rmt.export(small, tmp_path / "m", format=NAME, img_size=[32, 64])
    model = load_with_engine(made.path)
    assert model.pretrained_cfg["input_size"] == [3, 32, 64]
    words = r"for images of 32×64, and these are 64×32: .*--img-size 64 32.*--dynamic"
    with pytest.raises(ValueError, match=words):
        model(torch.zeros(1, 3, 64, 32))


def test_a_dynamic_file_runs_at_two_sizes_and_batches(small: Path, tmp_path: Path) -> None:
    made = rmt.export(small, tmp_path / "m", format=NAME, img_size=96, dynamic=True)
    assert [*made.differences] == ["model 1×3×96×96", "model 3×3×73×123"]
    model = load_with_engine(made.path)
    assert model(torch.zeros(2, 3, 70, 90)).shape == (2, 3)
    with pytest.raises(ValueError, match="takes images from 64 pixels on; these are 70×60"):
        model(torch.zeros(1, 3, 70, 60))


def test_own_photos_are_checked_on(small: Path, folder: Path, tmp_path: Path) -> None:
    made = rmt.export(small, tmp_path / "m", format=NAME, img_size=32, check=folder)
    assert made.differences["model 1×3×32×32"] < 1e-5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "onx"}, "unknown format 'onx'; did you mean 'onnx'"),
        ({"format": "onnx", "int8": True}, r"int8 needs images .*--calibration DIR"),
        ({"format": "aoti", "int8": True, "calibration": "x"}, "aoti has no 8-bit form.*openvino"),
        ({"format": "onnx", "calibration": "x"}, "calibration goes with int8"),
        ({"format": NAME, "batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"format": NAME, "img_size": 0}, "img_size is 0×0; expected sides from 1 on"),
        ({"format": NAME, "img_size": [1, 2, 3]}, "give one side, or height and width"),
        ({"format": NAME, "img_size": 48, "dynamic": True}, "expected sides from 64 on"),
    ],
)
def test_mistakes(options: dict[str, Any], words: str, small: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        rmt.export(small, tmp_path / "m", **options)
    with pytest.raises(ValueError, match=r"must end in \.eager"):
        rmt.export(small, tmp_path / "m.onnx", format=NAME)


def test_few_images_are_not_enough(
    small: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmt.deployment.export.INT8", (NAME,))
    monkeypatch.setattr("rmt.deployment.export.LEAST_IMAGES", 13)
    with pytest.raises(ValueError, match=r"holds 12 images; .* at least 13"):
        rmt.export(small, tmp_path / "m", format=NAME, int8=True, calibration=folder)


def test_a_detector_has_one_canvas(tmp_path: Path) -> None:
    model = rmt.create_detector("retinanet", "rmt_nano", num_classes=3)
    for options, words in (
        ({"img_size": (100, 128)}, "img_size is 100×128; expected multiples of 32"),
        ({"dynamic": True, "img_size": 64}, "dynamic is not for detection: .* one image at a time"),
        ({"batch_size": 2, "img_size": 64}, "batch_size 2 is not for detection"),
    ):
        with pytest.raises(ValueError, match=words):
            rmt.export(model, tmp_path / "m", format=NAME, **options)
    model = rmt.create_detector("mask_rcnn", "rmt_nano", num_classes=3)
    with pytest.raises(ValueError, match="exported as 3 files; name a folder"):
        rmt.export(model, tmp_path / "m.eager", format=NAME, img_size=64)


def test_a_larger_image_fits_the_canvas() -> None:
    model = rmt.create_detector("retinanet", "rmt_nano", num_classes=3, min_size=64, max_size=96)
    model.transform.canvas = (64, 96)
    batch = model.batch([torch.zeros(3, 200, 100), torch.zeros(3, 60, 90)])
    assert batch.sizes.tolist() == [[64, 32], [64, 96]]
    assert batch.pixels.shape == (2, 3, 64, 96)
    with pytest.raises(ValueError, match="200×100 is larger than the network's canvas, 64×96"):
        model.batch([torch.zeros(3, 200, 100)], resize=False)


def test_what_a_library_is_missing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, format, extra in (
        ("onnxscript", "onnx", "onnx"),
        ("openvino", "openvino", "openvino"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ValueError, match=rf"pip install 'rmt-vision\[{extra}\]'"):
            rmt.export(small, tmp_path / "m", format=format)


def test_engines(small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="unknown engine 'torchh'; did you mean 'torch'"):
        load_with_engine(small, "torchh")
    made = rmt.export(small, tmp_path / "m", format=NAME, img_size=32)
    with pytest.raises(ValueError, match="is for the engine eager, not onnx"):
        load_with_engine(made.path, "onnx")
    with pytest.raises(ValueError, match="one set of weights"):
        load_with_engine(made.path, weights="ema")
    with pytest.raises(ValueError, match="device is 'cuda'; exported networks run on the CPU"):
        rmt.Predictor.from_checkpoint(made.path, device="cuda")
    with pytest.raises(FileNotFoundError, match=r"no file or folder '.*none\.eager'"):
        load_with_engine(tmp_path / "none.eager")
    model = load_with_engine(small, NAME)
    assert isinstance(model, Exported)
    assert "for the engine eager first" in caplog.text


def test_archives_are_opened_on_request(tmp_path: Path) -> None:
    """Opening them can run what is in them."""
    path = tmp_path / "model.pt2"
    for engine, part in (("torch-export", "x"), ("aoti", "data/aotinductor/model/x")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"model/{part}", "{}")
        with pytest.raises(ValueError, match=f"can run any code .* --engine {engine}"):
            load_with_engine(path)
        with pytest.raises(ValueError, match="does not say which model it is"):
            load_with_engine(path, engine)
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match="cannot be opened"):
        load_with_engine(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda said: [], "metadata is a list of 0"),
        (lambda said: said | {"task": "x"}, "unknown task 'x'"),
        (lambda said: said | {"parts": ["../x"]}, "parts is not a list of names of graphs"),
        (lambda said: said | {"parts": []}, "parts is not a list of names of graphs"),
        (lambda said: said | {"parts": ["other"]}, "has no graph 'model', only other"),
        (lambda said: said | {"int8": 1}, "int8 is 1; expected true or false"),
        (
            lambda said: {k: v for k, v in said.items() if k != "transforms"},
            "no entry 'transforms'",
        ),
        (
            lambda said: said | {"transforms": said["transforms"] | {"size": [5]}},
            "size is not a height and a width",
        ),
        (
            lambda said: said | {"transforms": said["transforms"] | {"batch": 0}},
            "batch is 0; expected a whole number from 1",
        ),
        (
            lambda said: said | {"config": said["config"] | {"model_args": {"in_chans": "many"}}},
            "in_chans is 'many'; expected a whole number",
        ),
        (
            lambda said: (
                said
                | {
                    "task": "segmentation",
                    "config": {"architecture": "upernet", "num_classes": 3}
                    | {"model_args": {"nonsense": 1}},
                }
            ),
            "does not make a upernet",
        ),
        (
            lambda said: (
                said | {"task": "detection", "config": said["config"] | {"architecture": "x"}}
            ),
            "unknown detection head 'x'",
        ),
    ],
)
def test_a_faulty_description_is_refused(
    change: Callable[[dict[str, Any]], object], words: str, small: Path, tmp_path: Path
) -> None:
    path = rmt.export(small, tmp_path / "m", format=NAME, img_size=32).path
    content = json.loads(path.read_text())
    path.write_text(
        json.dumps(content | {"metadata": json.dumps(change(json.loads(content["metadata"])))})
    )
    with pytest.raises(ValueError, match=words):
        load_with_engine(path)


def test_the_command(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.eager"
    words = ["export", str(small), str(out), "--format", NAME, "--img-size", "32", "32"]
    assert rmt_cli.main([*words, "--json", str(tmp_path / "report.json")]) == 0
    assert "differs from torch by" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["size"] == [32, 32]
    assert report["path"] == str(out)
    photo = tmp_path / "photo.png"
    Image.linear_gradient("L").save(photo)
    assert rmt_cli.main(["predict", str(photo), "--checkpoint", str(out)]) == 0
    assert "%" in capsys.readouterr().out
    assert rmt_cli.main(words) == 2
    assert "is there already" in capsys.readouterr().err
