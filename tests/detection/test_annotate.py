"""Detections written for annotation tools are read back by our own readers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rmt
import rmt_cli
from rmt.detection.datasets import FORMATS, open_parts
from rmt.detection.recipe import Data

CLASSES = ["cat", "dog & co", "bird"]
TURNED = 6  # EXIF: width and height change places


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = rmt.create_detector("mask_rcnn", "rmt_nano", num_classes=3, min_size=64, max_size=96)
    made.info["label_names"] = CLASSES
    return made.save_pretrained(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with two images of one name, and one that lies on its side."""
    for i, name in enumerate(["one/a.png", "two/a.png", "b.jpg", "c.bmp"]):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (50 + i, 70, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = TURNED
        Image.fromarray(noise).save(path, **({"exif": exif} if name == "b.jpg" else {}))
    return tmp_path / "photos"


def call(*words: object) -> int:
    return rmt_cli.main([str(word) for word in words])


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_what_is_written_is_read_back(name: str, model: Path, photos: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "set", tmp_path / "records.json"
    (photos / "d.png").write_bytes(b"no image")
    words = ["predict", photos, "--checkpoint", model, "--score", "0.3", "--json", file]
    assert call(*words, "--annotations", out, "--annotations-format", name) == 1
    records = [record for record in json.loads(file.read_text()) if "error" not in record]
    assert sum(len(record["detections"]) for record in records) > 50
    samples = open_parts(Data(format=name, root=str(out)))[0]["train"]
    assert samples.classes == tuple(CLASSES)
    assert len(samples) == len(records) == 4
    names = {record["image"]: Path(record["image"]).name for record in records}
    names[str(photos / "two" / "a.png")] = "a_1.png"
    for i in range(len(samples)):
        record = next(r for r in records if names[r["image"]] == samples.path(i).name)
        image = samples.image(i)
        assert [image.height, image.width] == record["size"]
        target = samples.target(i, masks=name == "coco")
        wanted = [found for found in record["detections"] if visible(found["box"])]
        order, theirs = (sorted(range(len(wanted)), key=key) for key in keys(target, wanted))
        np.testing.assert_allclose(
            target["boxes"][order], [wanted[j]["box"] for j in theirs], atol=1e-3
        )
        assert target["labels"][order].tolist() == [wanted[j]["label"] for j in theirs]


def visible(box: list[float]) -> bool:
    x0, y0, x1, y1 = box
    return x1 - x0 >= 1 and y1 - y0 >= 1


def keys(target: dict[str, np.ndarray], wanted: list[dict[str, Any]]) -> tuple[Any, Any]:
    """Return how to order both lists in the same way."""
    return (
        lambda i: (target["labels"][i], *target["boxes"][i].round(2).tolist()),
        lambda i: (wanted[i]["label"], *np.round(wanted[i]["box"], 2).tolist()),
    )


def test_scores_and_masks_in_coco(model: Path, photos: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "set", tmp_path / "records.json"
    words = ["predict", photos / "c.bmp", "--checkpoint", model, "--json", file]
    assert call(*words, "--annotations", out) == 0
    (record,) = json.loads(file.read_text())
    content = json.loads((out / "annotations" / "train.json").read_text())
    found = [own for own in record["detections"] if own["box"][2] > own["box"][0]]
    assert [entry["score"] for entry in content["annotations"]] == [o["score"] for o in found]
    assert [entry["segmentation"] for entry in content["annotations"]] == [o["mask"] for o in found]


def test_annotations_that_cannot_be_written(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: object) -> str:
        assert call("predict", "--annotations", *words) == 2
        return capsys.readouterr().err

    photo = photos / "c.bmp"
    assert f"{photos} is not empty" in said(photos, photo, "--checkpoint", model)
    wrong = said(tmp_path / "set", photo, "--checkpoint", model, "--annotations-format", "cocoa")
    assert "did you mean 'coco'" in wrong
    assert "- is not one; extract the frames" in said(tmp_path / "set", "-", "--checkpoint", model)
    other = rmt.create_model("rmt_nano", 3).save_pretrained(tmp_path / "classifier")
    assert "this is a classification model" in said(tmp_path / "set", photo, "--checkpoint", other)
    assert not (tmp_path / "set").exists()
