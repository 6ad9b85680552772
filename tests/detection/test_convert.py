"""Data sets are converted into each other by function and command, and nothing is replaced."""

import cProfile
import json
import pstats
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import rmt_cli
from rmt.detection.convert import convert
from rmt.detection.datasets import FORMATS, open_parts, open_splits
from rmt.detection.recipe import Data
from rmt.detection.samples import Samples
from rmt.detection.toy import SHAPES, toy


@pytest.fixture(scope="module", params=FORMATS)
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a COCO set as COCO itself is laid out, ids with gaps, polygons and a crowd."""
    root = tmp_path_factory.mktemp("official")
    made = toy(root / "made")
    (root / "coco" / "annotations").mkdir(parents=True)
    for part in ("train", "val"):
        (made / "images" / part).rename(root / "coco" / f"{part}2017")
        content = json.loads((made / "annotations" / f"{part}.json").read_text())
        for entry in content["categories"]:
            entry["id"] += 16
            entry["supercategory"] = "shape"
        for entry in content["annotations"]:
            entry["category_id"] += 16
            entry["image_id"] += 9000
        for entry in content["images"]:
            entry["id"] += 9000
        path = root / "coco" / "annotations" / f"instances_{part}2017.json"
        path.write_text(json.dumps(content))
    return root / "coco"


def boxes(samples: Samples) -> dict[str, np.ndarray]:
    return {
        samples.path(i).name: samples.target(i, masks=False)["boxes"] for i in range(len(samples))
    }


def assert_equal_boxes(root: Path, other: Path) -> None:
    """Assert that two folders hold the same images with the same boxes, split by split."""
    ours, theirs = (open_parts(Data(root=str(folder)))[0] for folder in (root, other))
    assert ours.keys() == theirs.keys()
    for part, samples in ours.items():
        assert samples.classes == theirs[part].classes
        found, expected = boxes(samples), boxes(theirs[part])
        assert found.keys() == expected.keys()
        for name, own in found.items():
            np.testing.assert_allclose(own, expected[name], atol=1e-3)


@pytest.mark.parametrize("to", FORMATS)
def test_there_and_back(root: Path, to: str, tmp_path: Path) -> None:
    folders = convert(root, tmp_path / "there", to=to)
    assert [len(list(folder.glob("*.png"))) for folder in folders] == [6, 6]
    convert(tmp_path / "there", tmp_path / "back", to="coco", read_as=to)
    assert_equal_boxes(tmp_path / "back", root)


def test_the_command(official: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """COCO to VOC to YOLO to COCO, each read here by nothing of ours."""
    previous = official
    for to in ("voc", "yolo", "coco"):
        words = ["convert-dataset", str(previous), str(tmp_path / to), "--to", to]
        assert rmt_cli.main(words) == 0
        assert str(tmp_path / to) in capsys.readouterr().out
        assert_equal_boxes(tmp_path / to, official)
        previous = tmp_path / to
    source = json.loads((official / "annotations" / "instances_val2017.json").read_text())
    names = {entry["id"]: entry["name"] for entry in source["categories"]}
    for image in source["images"]:
        own = [a for a in source["annotations"] if a["image_id"] == image["id"]]
        expected = [
            (names[a["category_id"]], *a["bbox"]) for a in own if not a["iscrowd"]
        ]  # crowds have no word in VOC and YOLO
        stem = Path(image["file_name"]).stem
        voc = ET.parse(tmp_path / "voc" / "val" / f"{stem}.xml").getroot()
        assert voc.findtext("filename") == image["file_name"]
        assert voc.findtext("size/width") == str(image["width"])
        corners = [
            (thing.findtext("name"), *(float(corner.text) for corner in thing.find("bndbox")))
            for thing in voc.iter("object")
        ]
        assert [(name, x0, y0, x1 - x0, y1 - y0) for name, x0, y0, x1, y1 in corners] == expected
        text = (tmp_path / "yolo" / "labels" / "val" / f"{stem}.txt").read_text()
        lines = [[float(word) for word in line.split()] for line in text.splitlines()]
        width, height = image["width"], image["height"]
        found = [
            (SHAPES[int(c)], (x - w / 2) * width, (y - h / 2) * height, w * width, h * height)
            for c, x, y, w, h in lines
        ]
        for one, other in zip(found, expected, strict=True):
            assert one[0] == other[0]
            assert one[1:] == pytest.approx(other[1:], abs=1e-9)
    described = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
    assert described == {"names": list(SHAPES), "train": "images/train", "val": "images/val"}
    again = json.loads((tmp_path / "coco" / "annotations" / "val.json").read_text())
    assert len(again["images"]) == len(source["images"])
    assert len(again["annotations"]) == len(source["annotations"]) - 1


def test_polygons_survive_where_there_is_a_word(official: Path, tmp_path: Path) -> None:
    convert(official, tmp_path / "yolo", to="yolo")
    convert(tmp_path / "yolo", tmp_path / "coco", to="coco")
    before, after = (open_parts(Data(root=str(r)))[0]["val"] for r in (official, tmp_path / "coco"))
    for i in range(len(before)):
        ours, theirs = (samples.target(i, masks=True)["masks"] for samples in (after, before))
        assert np.array_equal(ours, theirs)


def test_a_set_of_one_split_stays_whole(tmp_path: Path) -> None:
    made = toy(tmp_path / "made", images=2)
    (made / "annotations" / "val.json").unlink()
    (folder,) = convert(made, tmp_path / "voc", to="voc")
    assert len(list(folder.glob("*.xml"))) == 2
    assert open_parts(Data(root=str(tmp_path / "voc")))[0].keys() == {"train"}


def test_nothing_is_replaced(root: Path, tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    with pytest.raises(ValueError, match="is not empty"):
        convert(root, tmp_path, to="coco")
    with pytest.raises(ValueError, match="did you mean 'coco'"):
        convert(root, tmp_path / "new", to="cocoo")


def test_two_images_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """COCO's names may hold folders; the other formats find labels by the bare name."""
    made = toy(tmp_path / "made", images=3)
    path = made / "annotations" / "train.json"
    content = json.loads(path.read_text())
    folder = made / "images" / "train"
    (folder / "a").mkdir()
    Image.open(folder / "train_1.png").save(folder / "a" / "train_0.png")
    content["images"][1]["file_name"] = "a/train_0.png"
    path.write_text(json.dumps(content))
    assert len(open_splits(Data(root=str(made))).train) == 2
    words = ["convert-dataset", str(made), str(tmp_path / "new"), "--to", "yolo"]
    assert rmt_cli.main(words) == 2
    assert "would get one name" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_difficult_objects_are_kept_where_they_can_be_marked(tmp_path: Path) -> None:
    made = toy(tmp_path / "made", "voc", images=3)
    path = made / "train" / "train_0.xml"
    path.write_text(path.read_text().replace("</name>", "</name><difficult>1</difficult>", 1))
    convert(made, tmp_path / "coco", to="coco")
    convert(tmp_path / "coco", tmp_path / "voc", to="voc")
    assert "<difficult>1</difficult>" in (tmp_path / "voc" / "train" / "train_0.xml").read_text()
    convert(tmp_path / "voc", tmp_path / "yolo", to="yolo")
    labels = tmp_path / "yolo" / "labels" / "train" / "train_0.txt"
    assert len(labels.read_text().split("\n")) == 3


def test_what_is_left_out_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    made = toy(tmp_path / "made", "yolo", images=3)
    (made / "images" / "train" / "clip.mp4").write_bytes(b"x")
    (made / "images" / "train" / "train_1.png").write_bytes(b"")
    words = ["convert-dataset", str(made), str(tmp_path / "new"), "--to", "coco"]
    assert rmt_cli.main(words) == 0
    assert "images/train" in capsys.readouterr().out
    assert "left out: unreadable image: " in caplog.text
    assert "1 .mp4 file (not read, first clip.mp4), 1 left out: 1 unreadable image" in caplog.text


def test_a_photo_annotated_as_it_is_stored_stays_so(tmp_path: Path) -> None:
    """Other programs turn it by its EXIF tag, which would part it from its boxes."""
    made = toy(tmp_path / "made", images=3)
    path = made / "images" / "train" / "train_0.png"
    photo = Image.open(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(path, exif=exif)
    convert(made, tmp_path / "yolo", to="yolo")
    copy = Image.open(tmp_path / "yolo" / "images" / "train" / "train_0.png")
    assert copy.size == photo.size
    assert 0x0112 not in copy.getexif()
    assert np.array_equal(np.asarray(copy), np.asarray(photo))
    assert_equal_boxes(tmp_path / "yolo", made)


def test_nothing_from_outside_is_copied(root: Path, tmp_path: Path) -> None:
    """Not what annotations name, and not what a link among the images stands for."""
    own = tmp_path / "set"
    shutil.copytree(root, own)
    images = sorted(path for path in own.rglob("train_*.png"))
    secret = tmp_path / "secret.png"
    images[0].rename(secret)
    images[0].symlink_to(secret)
    convert(own, tmp_path / "out", to="coco")
    found = list((tmp_path / "out").rglob("*.png"))
    assert sorted(path.name for path in found) == sorted(
        path.name for path in own.rglob("*.png") if path != images[0]
    )
    content = json.loads((tmp_path / "out" / "annotations" / "train.json").read_text())
    assert images[0].name not in {entry["file_name"] for entry in content["images"]}


def test_a_text_file_named_as_an_image_is_not_copied(tmp_path: Path) -> None:
    root = toy(tmp_path / "set")
    path = root / "annotations" / "train.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = "/etc/hostname"
    path.write_text(json.dumps(content))
    convert(root, tmp_path / "out", to="voc")
    assert not list((tmp_path / "out").rglob("hostname*"))
    assert len(list((tmp_path / "out" / "train").glob("*.png"))) == 5


@pytest.mark.parametrize("to", ["voc", "yolo"])
@pytest.mark.parametrize("named", [True, False])
def test_the_work_grows_as_the_images_do(to: str, named: bool, tmp_path: Path) -> None:
    """Not with their square: twice as many take twice as many calls."""
    calls = []
    for count in (40, 80):
        root = toy(tmp_path / f"set {count}", "voc", images=count, size=(32, 40))
        if not named:  # the image is the one called as the file is
            for path in root.rglob("*.xml"):
                text = path.read_text()
                path.write_text(re.sub("<filename>.*</filename>", "", text))
        profile = cProfile.Profile()
        profile.runcall(convert, root, tmp_path / f"out {count}", to=to)
        calls.append(pstats.Stats(profile).total_calls)
    assert calls[1] < 2.2 * calls[0]


def test_a_class_of_two_lines_stays_one(tmp_path: Path) -> None:
    root = toy(tmp_path / "set")
    for path in (root / "annotations").iterdir():
        path.write_text(path.read_text().replace('"disc"', '"a\\nb\\u0000"'))
    names = open_splits(Data(root=str(root))).classes
    for to in ("voc", "yolo"):
        convert(root, tmp_path / to, to=to)
        assert open_splits(Data(root=str(tmp_path / to))).classes == names
