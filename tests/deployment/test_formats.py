"""Each format in its own runtime, in all tasks, on real photos; minutes each, so all are slow."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
import torch
from PIL import Image
from torch import Tensor, nn

import rmt
import rmt_cli
from rmt.deployment.formats import FORMATS
from rmt.deployment.load import load_with_engine
from rmt.detection.detector import Detections, Detector
from rmt.detection.exported import ExportedRetinaNet
from rmt.detection.rcnn import RCNN
from rmt.detection.retinanet import RetinaNet
from rmt.modeling.pretrained import Pretrained
from rmt.modeling.saved import SHIPPED
from rmt.segmentation.exported import set_size
from rmt.segmentation.segmenter import Segmenter

pytestmark = pytest.mark.slow
CLASSES = 8
CANVAS = (96, 128)
WEIGHTS = "rmt_nano.tiny_imagenet"


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    names = ("astronaut", "coffee", "chelsea")
    return [
        *sklearn.datasets.load_sample_images().images,
        *(getattr(skimage.data, n)() for n in names),
    ]


def crowded(head: str, *, limit: int) -> Detector:
    """Return an untrained detector that finds up to ``limit`` objects of all classes anywhere."""
    model = rmt.create_detector(head, "rmt_nano", num_classes=CLASSES, min_size=96, max_size=128)
    model.eval().max_detections = limit
    for layer in [model.head] if head == "retinanet" else [model.rpn, *model.box_heads]:
        spread(layer.cls)
    model([torch.randint(256, (3, *CANVAS)) / 255])
    for layer in getattr(model, "mask_heads", ()):
        nn.init.normal_(layer.logits.weight, std=1)
    if head == "retinanet":
        nn.init.normal_(model.head.reg.weight, std=0.2)
    return model


def spread(layer: nn.Conv2d | nn.Linear) -> None:
    """Normalise a score layer, when it is next used: mean 0 and deviation 1 of each output."""

    @torch.no_grad()
    def change(layer: nn.Conv2d | nn.Linear, inputs: tuple[Tensor]) -> None:
        handle.remove()
        nn.init.zeros_(layer.bias)
        out = layer.forward(*inputs).transpose(0, 1).flatten(1)
        layer.weight /= out.std(dim=1).view(-1, *[1] * (layer.weight.ndim - 1))
        layer.bias -= out.mean(dim=1) / out.std(dim=1)

    handle = layer.register_forward_pre_hook(change)


def share_found(found: Detections, expected: Detections) -> float:
    """Return the share of objects that both have; those of equal score in any order."""
    free = torch.ones(len(found["scores"]), dtype=torch.bool)
    for box, score, label in zip(
        *(expected[n] for n in ("boxes", "scores", "labels")), strict=True
    ):
        near = free & (found["labels"] == label) & ((found["scores"] - score).abs() < 1e-3)
        near &= ((found["boxes"] - box).abs() < 0.5).all(dim=1)
        if near.any():
            free[near.nonzero()[0, 0]] = False
    return float((~free).sum()) / max(len(free), len(expected["scores"]), 1)


MODELS: dict[str, Any] = {
    "classification": lambda: rmt.load(WEIGHTS),
    "semantic_fpn": lambda: rmt.create_segmenter("semantic_fpn", "rmt_nano", 5, channels=16),
    "upernet": lambda: rmt.create_segmenter("upernet", "rmt_nano", 5, channels=16),
    "retinanet": lambda: crowded("retinanet", limit=100),
    "mask_rcnn": lambda: crowded("mask_rcnn", limit=50),
    "cascade_mask_rcnn": lambda: crowded("cascade_mask_rcnn", limit=50),
}
SIZES = {"classification": 64, "semantic_fpn": 96, "upernet": 96}


# The other heads have no operators that these have not; compiling all of them takes an hour.
EVERYWHERE = ("classification", "semantic_fpn", "retinanet", "mask_rcnn")
MADE = [
    f"{head} {kind}" for head in MODELS for kind in FORMATS if head in EVERYWHERE or kind == "onnx"
]


@pytest.fixture(scope="module", params=MADE)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Pretrained, Path, str]:
    """Export a model; return it, seeing images as the export does, with the path and format."""
    head, kind = request.param.split()
    torch.manual_seed(0)
    model = MODELS[head]().eval()
    size = SIZES.get(head, CANVAS)
    path = rmt.export(
        model, tmp_path_factory.mktemp("made") / head, format=kind, img_size=size
    ).path
    if isinstance(model, Detector):
        model.transform.canvas = CANVAS
    elif isinstance(model, Segmenter):
        set_size(model, (size, size), any_size=False)
    return model, path, kind


def test_five_photos(made: tuple[Pretrained, Path, str], photos: list[np.ndarray]) -> None:
    model, path, kind = made
    predictor = rmt.Predictor.from_checkpoint(path, engine=kind)
    expected = rmt.Predictor(model)
    if isinstance(model, RCNN):
        # Rounding decides which of two boxes with nearly equal scores suppresses the other; the
        # suppression runs in torch on both sides, so it is switched off.
        for each in (model, predictor.model):
            each.iou_threshold, each.max_detections, each.rpn.limits = 1.0, 50, (100, 100)
    for photo in photos:
        if isinstance(model, Detector):
            image = torch.from_numpy(photo.copy()).permute(2, 0, 1) / 255
            (found,), (wanted,) = predictor.model([image]), model([image])
            assert len(wanted["scores"]) == model.max_detections
            assert share_found(found, wanted) > 0.9
        elif isinstance(model, Segmenter):
            found, wanted = predictor(photo)["labels"], expected(photo)["labels"]
            assert (found != wanted).mean() < 1e-3
        else:
            found, wanted = predictor(photo)["top"], expected(photo)["top"]
            assert [own["label"] for own in found] == [own["label"] for own in wanted]
            assert found[0]["score"] == pytest.approx(wanted[0]["score"], abs=1e-4)


def test_nothing_is_found(made: tuple[Pretrained, Path, str]) -> None:
    model, path, kind = made
    if isinstance(model, Detector):
        (found,) = load_with_engine(path, kind)([torch.rand(3, 90, 80)], score_threshold=1.0)
        assert found["boxes"].shape == (0, 4)
        assert len(found["scores"]) == len(found["labels"]) == 0
        if model.has_masks:
            assert found["masks"].shape == (0, 90, 80)


def test_the_operators_suit_other_runtimes(made: tuple[Pretrained, Path, str]) -> None:
    """TensorRT overflows in a LayerNorm of several operators, and corrupts grid_sample."""
    model, path, kind = made
    norms = sum(isinstance(own, nn.LayerNorm) for own in model.modules())
    if isinstance(model, RetinaNet):
        norms -= 1  # of the map of stride 4, which it does not use
    if kind == "onnx":
        import onnx

        files = [path] if path.is_file() else sorted(path.iterdir())
        graphs = [onnx.load(file) for file in files]
        found = Counter(node.op_type for graph in graphs for node in graph.graph.node)
        assert found["LayerNormalization"] == norms
        assert not {"GridSample", "ReduceVariance"} & found.keys()
        assert all(
            own.version >= 17 for graph in graphs for own in graph.opset_import if not own.domain
        )
        assert {entry.key for graph in graphs for entry in graph.metadata_props} == {"rmt"}
    elif kind == "openvino":
        import openvino

        files = [path] if path.is_file() else sorted(path.glob("*.xml"))
        graphs = [openvino.Core().read_model(file) for file in files]
        found = Counter(node.get_type_name() for graph in graphs for node in graph.get_ops())
        assert found["MVN"] == norms
        assert "GridSample" not in found
        assert (
            all(not own.partial_shape.is_dynamic for own in graphs[-1].inputs[:1]) or path.is_dir()
        )


DYNAMIC = (
    [("classification", kind) for kind in ("onnx", "openvino", "torch-export")]
    + [("semantic_fpn", kind) for kind in ("onnx", "openvino")]
    + [("upernet", "onnx"), ("upernet", "torch-export")]
)


@pytest.mark.parametrize(("head", "kind"), DYNAMIC)
@torch.no_grad()
def test_all_sizes(head: str, kind: str, tmp_path: Path) -> None:
    model = MODELS[head]().eval()
    made = rmt.export(model, tmp_path / "m", format=kind, dynamic=True, img_size=96)
    assert len(made.differences) == 2
    found = load_with_engine(made.path, kind)
    for shape in ((1, 3, 64, 64), (2, 3, 97, 150), (5, 3, 70, 65)):
        images = torch.randn(shape)
        assert torch.allclose(found(images), model(images), atol=1e-4), shape


@pytest.mark.parametrize("batch", [1, 3])
def test_the_verbs(
    batch: int, photos: list[np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exported, predicted with and evaluated by the command."""
    root = tmp_path / "data"
    for i, photo in enumerate(photos):
        folder = root / ("cat" if i == 4 else "other")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(folder / f"{i}.png")
    model = rmt.create_model("rmt_nano", num_classes=2)
    model.info["label_names"] = ["cat", "other"]
    model.pretrained_cfg |= {"input_size": (3, 64, 64)}
    checkpoint = model.save_pretrained(tmp_path / "model")
    out = tmp_path / "m.onnx"

    def call(*words: object) -> Any:
        file = tmp_path / "said.json"
        assert rmt_cli.main([*map(str, words), "--json", str(file)]) == 0
        return json.loads(file.read_text())

    words = ["--format", "onnx", "--batch", batch, "--check", root]
    assert call("export", checkpoint, out, *words)["batch"] == batch
    found = call("predict", root, "--checkpoint", out)
    assert len(found) == 5
    keys = ["--data.root", root, "--data.num_workers", 0, "--trainer.accelerator", "cpu"]
    said = call("eval", "--checkpoint", out, *keys)
    assert said["engine"] == "onnx"
    plain = call("eval", "--checkpoint", checkpoint, *keys)
    assert plain["engine"] == "torch"
    assert said["metrics"] == plain["metrics"]
    assert said["checkpoint"]["sha256"] != plain["checkpoint"]["sha256"]
    if batch == 1:
        assert (
            call("eval", "--checkpoint", checkpoint, "--engine", "onnx", *keys)["metrics"]
            == (plain["metrics"])
        )


@pytest.mark.parametrize("head", ["classification", "semantic_fpn", "retinanet"])
@torch.no_grad()
def test_compiled(head: str, photos: list[np.ndarray], tmp_path: Path) -> None:
    if head == "classification":
        checkpoint: str | Path = WEIGHTS
    else:
        checkpoint = MODELS[head]().save_pretrained(tmp_path)
    model = load_with_engine(checkpoint, "compile")
    found, expected = (
        rmt.Predictor(model)(photos[4]),
        rmt.Predictor(rmt.load(checkpoint))(photos[4]),
    )
    if head == "classification":
        assert [own["label"] for own in found["top"]] == [own["label"] for own in expected["top"]]
    elif head == "semantic_fpn":
        assert (found["labels"] != expected["labels"]).mean() < 1e-3
    else:
        assert len(found["detections"]) == len(expected["detections"])


@torch.no_grad()
def test_the_shipped_weights_give_one_answer(photos: list[np.ndarray], tmp_path: Path) -> None:
    """Plain, fused, in ONNX Runtime and in OpenVINO: equal classes on crops of real photos."""
    assert (SHIPPED / f"{WEIGHTS}.safetensors").is_file()
    plain = rmt.load(WEIGHTS)
    forms = {"fused": plain.fuse()}
    for kind in ("onnx", "openvino"):
        forms[kind] = load_with_engine(rmt.export(WEIGHTS, tmp_path / kind, format=kind).path)
    crops = [
        photo[y : y + 200, x : x + 200]
        for photo in photos
        for y in (0, 60, 100)
        for x in (0, 90, 200)
    ]
    best = [own["top"][0]["label"] for own in rmt.Predictor(plain, top=1).predict_batch(crops)]
    assert len({*best}) > 5
    for name, model in forms.items():
        found = rmt.Predictor(model, top=1).predict_batch(crops)
        assert [own["top"][0]["label"] for own in found] == best, name


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory, photos: list[np.ndarray]) -> Path:
    """Return 60 crops of photos."""
    folder, draw = tmp_path_factory.mktemp("crops"), np.random.default_rng(0)
    for i in range(60):
        photo = photos[i % len(photos)]
        side = int(draw.integers(120, 280))
        y, x = (int(draw.integers(0, length - side)) for length in photo.shape[:2])
        Image.fromarray(photo[y : y + side, x : x + side]).save(folder / f"{i:02}.png")
    return folder


@pytest.mark.parametrize("kind", ["openvino", "onnx"])
@pytest.mark.parametrize("head", ["classification", "semantic_fpn", "retinanet"])
def test_eight_bits(kind: str, head: str, crops: Path, tmp_path: Path) -> None:
    """They run, are smaller, and say how far they agree."""
    torch.manual_seed(0)
    model = MODELS[head]().eval()
    options: dict[str, Any] = {"format": kind, "img_size": SIZES.get(head, CANVAS)}
    rmt.export(model, tmp_path / "plain", **options)
    small = rmt.export(
        model, tmp_path / "small", **options, int8=True, calibration=crops, force=True
    )
    sizes = [
        sum(file.stat().st_size for file in tmp_path.glob(f"{name}.*") if file.suffix != ".xml")
        for name in ("plain", "small")
    ]
    assert sizes[1] < 0.6 * sizes[0]
    ((name, percent),) = small.agreement.items()
    assert 0 < percent <= 100, name
    assert load_with_engine(small.path) is not None


def test_openvino_sends_nothing() -> None:
    """Without the tests' own precaution: importing it forks no process and opens no connection."""
    code = """
import os, socket, sys
def refuse(*args, **options): raise SystemExit("it tried")
os.fork = os.forkpty = socket.socket.connect = socket.getaddrinfo = refuse
import multiprocessing
multiprocessing.Process.start = refuse
from rmt.deployment.libraries import import_openvino
from rmt.deployment.quantize import quantize_openvino
openvino = import_openvino()
import nncf
assert sys.modules["openvino_telemetry"] is None
openvino.convert_model  # what it would count
print("quiet")
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert said.stdout.strip().endswith("quiet"), said.stderr


def test_a_graph_of_retinanet_knows_no_limit_of_scores(tmp_path: Path) -> None:
    """The threshold is an input, so that `score` works with an exported file."""
    model = crowded("retinanet", limit=100)
    path = rmt.export(model, tmp_path / "m", format="onnx", img_size=CANVAS).path
    found = load_with_engine(path)
    assert isinstance(found, ExportedRetinaNet)
    image = torch.rand(3, 96, 128)
    counts = [len(found([image], score_threshold=own)[0]["scores"]) for own in (0.0, 0.9, 0.99)]
    assert counts[0] == 100
    assert counts == sorted(counts, reverse=True)
