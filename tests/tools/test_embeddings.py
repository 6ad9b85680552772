"""Features of images in a Parquet file."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rmt
import rmt_cli
from rmt.tools.predict import Embedder

parquet = pytest.importorskip("pyarrow.parquet")


def call(*words: object) -> int:
    return rmt_cli.main([str(word) for word in ("predict", *words)])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, size in enumerate([(40, 50), (50, 40), (40, 50)]):
        noise = np.random.default_rng(i).integers(0, 80 * i + 80, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("task", ["classification", "detection", "segmentation"])
def test_a_table_of_features(
    task: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {
        "classification": lambda: rmt.create_model("rmt_nano", 3),
        "detection": lambda: rmt.create_detector(
            "retinanet", "rmt_nano", num_classes=2, min_size=64, max_size=96
        ),
        "segmentation": lambda: rmt.create_segmenter(
            "semantic_fpn", "rmt_nano", num_classes=3, channels=8
        ),
    }[task]()
    model.eval().save_pretrained(tmp_path / "model")
    file = tmp_path / "deep" / "features.parquet"
    words = [photos, "--checkpoint", tmp_path / "model", "--batch-size", 2, "--embeddings", file]
    assert call(*words) == 1
    assert f"3.png  ERROR {photos / '3.png'} is not an image" in capsys.readouterr().out
    table = parquet.read_table(file)
    assert table.column_names == ["image", "frame", "embedding"]
    assert str(table.schema.field("embedding").type) == "list<element: float>"
    found = table.to_pydict()
    assert found["image"] == [str(photos / f"{i}.png") for i in range(3)]
    assert found["frame"] == [None] * 3
    embedder = Embedder(model, device="cpu")
    for path, vector in zip(found["image"], found["embedding"], strict=True):
        np.testing.assert_allclose(vector, embedder(path)["embedding"], rtol=1e-4, atol=1e-5)
    assert len({tuple(vector) for vector in found["embedding"]}) == 3


def test_the_features_are_those_before_the_classifier(photos: Path) -> None:
    model = rmt.create_model("rmt_nano", 3).eval()
    embedding = Embedder(model, device="cpu")(photos / "0.png")["embedding"]
    (top, *_) = rmt.Predictor(model, device="cpu", top=3)(photos / "0.png")["top"]
    with torch.inference_mode():
        scores = model.get_classifier()(torch.from_numpy(embedding)).softmax(0)
    assert scores[top["label"]].item() == pytest.approx(top["score"], abs=1e-5)
    bare = rmt.create_model("rmt_nano", 0).eval()
    assert Embedder(bare, device="cpu")(photos / "0.png")["embedding"].ndim == 1


def test_what_features_do_not_go_with(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [photos, "--checkpoint", "x", "--embeddings", tmp_path / "f.parquet"]
    assert call(*words, "--out", tmp_path / "drawn") == 2
    assert "instead of predictions" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert call(*words) == 2
    assert "pip install 'rmt-vision[parquet]'" in capsys.readouterr().err
