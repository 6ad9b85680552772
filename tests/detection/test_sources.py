"""Data sets in three formats: read alike, and every fault named."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rmt.detection import coco
from rmt.detection.formats import FORMATS
from rmt.detection.recipe import Data
from rmt.detection.sources import Samples, open_splits
from rmt.detection.toy import SHAPES, toy


@pytest.fixture(scope="module", params=FORMATS)
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Return a COCO set to spoil."""
    return toy(tmp_path / "own", images=3)


def targets(samples: Samples) -> dict[str, dict[str, np.ndarray]]:
    return {samples.path(i).name: samples.target(i, masks=False) for i in range(len(samples))}


def test_formats_hold_the_same(root: Path, tmp_path: Path) -> None:
    ours = open_splits(Data(root=str(root)))
    reference = open_splits(Data(root=str(toy(tmp_path / "coco"))))
    assert ours.classes == reference.classes == SHAPES
    assert ours.test is None
    for part in ("train", "val"):
        found, expected = targets(getattr(ours, part)), targets(getattr(reference, part))
        assert found.keys() == expected.keys()
        for name, target in found.items():
            assert np.array_equal(target["labels"], expected[name]["labels"])
            np.testing.assert_allclose(target["boxes"], expected[name]["boxes"], atol=1e-4)
    # The last image of the training part has no object, that of the validation part counts.
    assert (len(ours.train), len(ours.val)) == (5, 6)
    everything = open_splits(Data(root=str(root), keep_empty=True))
    assert len(everything.train) == 6


# pycocotools speaks to numpy in the old way.
@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_masks_of_polygons_and_codes(tmp_path: Path) -> None:
    from pycocotools import mask as mask_api

    samples = open_splits(Data(root=str(toy(tmp_path)))).val
    target = samples.target(0, masks=True)
    entries = [o for o in samples.objects[samples.ids[0]] if not o["iscrowd"]]
    height, width = samples.image(0).height, samples.image(0).width
    assert target["masks"].shape == (len(entries), height, width)
    for entry, mask in zip(entries, target["masks"], strict=True):
        code = mask_api.merge(mask_api.frPyObjects(entry["segmentation"], height, width))
        assert np.array_equal(mask, mask_api.decode(code))
        plain = {"size": [height, width], "counts": _uncompressed(mask)}
        assert np.array_equal(coco.to_mask(plain, height, width), mask)
        code = coco.to_rle(mask[None])[0]
        assert np.array_equal(coco.to_mask(code, height, width), mask)
        assert coco._runs(code["counts"]) == plain["counts"]


def _uncompressed(mask: np.ndarray) -> list[int]:
    flat = np.concatenate([[0], mask.flatten(order="F"), [2]])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], edges])).tolist() if edges[-1] else [flat.size - 2]


def test_crowds_are_kept_out_of_training_only(tmp_path: Path) -> None:
    samples = open_splits(Data(root=str(toy(tmp_path)))).val
    own = samples.objects[samples.ids[0]]
    assert sum(entry["iscrowd"] for entry in own) == 1
    assert len(samples.target(0, masks=False)["boxes"]) == len(own) - 1
    assert any(entry["iscrowd"] for entry in samples.only()["annotations"])


def test_category_ids_may_have_gaps(own: Path) -> None:
    for part in ("train", "val"):
        change(own, lambda content: _renumber(content, {1: 7, 2: 90}), part)
    samples = open_splits(Data(root=str(own))).val
    assert samples.category_ids == (7, 90)
    assert set(samples.target(0, masks=False)["labels"]) <= {0, 1}


def _renumber(content: dict[str, Any], ids: dict[int, int]) -> None:
    for entry in content["categories"]:
        entry["id"] = ids[entry["id"]]
    for entry in content["annotations"]:
        entry["category_id"] = ids[entry["category_id"]]


def change(root: Path, edit: Callable[[dict[str, Any]], None], part: str = "train") -> Path:
    path = root / "annotations" / f"{part}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return path


def _code(content: dict[str, Any], counts: Any) -> dict[str, Any]:
    """Return a run-length code for the first object's image."""
    image = content["images"][0]
    return {"size": [image["height"], image["width"]], "counts": counts}


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no list": (lambda c: c.pop("images"), "has no list 'images'"),
    "no field": (lambda c: c["annotations"][1].pop("bbox"), "annotation id 2 has no 'bbox'"),
    "no size": (lambda c: c["images"][0].pop("width"), "image id 1 has no 'width'"),
    "no id": (lambda c: c["annotations"][0].pop("id"), "annotation number 0 has no 'id'"),
    "id twice": (lambda c: c["images"][1].update(id=1), "image id 1 occurs twice"),
    "annotation id twice": (
        lambda c: c["annotations"][1].update(id=1),
        "annotation id 1 occurs twice",
    ),
    "no such image": (lambda c: c["annotations"][0].update(image_id=99), "id 1 is of image 99"),
    "no such category": (
        lambda c: c["annotations"][0].update(category_id=99),
        "id 1 is of category 99",
    ),
    "bad box": (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "id 1 has bbox"),
    "box of words": (lambda c: c["annotations"][0].update(bbox=["a", 2, 3, 4]), "four numbers"),
    "mask of words": (lambda c: c["annotations"][0].update(segmentation="m"), "of type str"),
    "mask of two points": (
        lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]),
        "three points",
    ),
    "mask of words in points": (
        lambda c: c["annotations"][0].update(segmentation=[["a", 2, 3, 4, 5, 6]]),
        "three points",
    ),
    "code of a number": (
        lambda c: c["annotations"][0].update(segmentation={"size": [1, 1], "counts": 3}),
        "id 1 has a segmentation of type dict",
    ),
    "code of another size": (
        lambda c: c["annotations"][0].update(segmentation={"size": [1, 1], "counts": "x"}),
        r"id 1 has a mask of size \[1, 1\], its image is of",
    ),
    "counts that do not fill": (
        lambda c: c["annotations"][0].update(segmentation=_code(c, [1, 2, 3])),
        "id 1 has a run-length code that does not fill its image",
    ),
    "counts of words": (
        lambda c: c["annotations"][0].update(segmentation=_code(c, ["a", None])),
        "id 1 has a run-length code",
    ),
    "no code": (
        lambda c: c["annotations"][0].update(segmentation=_code(c, "ä!")),
        "id 1 has a run-length code",
    ),
    "half a code": (
        lambda c: c["annotations"][0].update(segmentation=_code(c, "PPP")),
        "id 1 has a run-length code",
    ),
    "code of too few": (
        lambda c: c["annotations"][0].update(segmentation=_code(c, "1")),
        "id 1 has a run-length code",
    ),
    "no area": (lambda c: c["annotations"][0].update(area=None), "id 1 has area None"),
    "area of words": (lambda c: c["annotations"][0].update(area="3"), "id 1 has area '3'"),
    "no crowd": (lambda c: c["annotations"][0].update(iscrowd=None), "id 1 has iscrowd None"),
    "name of a number": (
        lambda c: c["images"][0].update(file_name=3),
        "image id 1 has file_name 3",
    ),
    "id of a list": (
        lambda c: c["categories"][0].update(id=[1]),
        r"category number 0 has id \[1\]; expected a whole number",
    ),
    "category of words": (
        lambda c: c["annotations"][1].update(category_id="1"),
        "annotation number 1 has category_id '1'",
    ),
    "size of words": (
        lambda c: c["images"][0].update(height="64"),
        "image id 1 has height '64'",
    ),
    "no object": (lambda c: c["annotations"].insert(0, 7), "annotation number 0 is 7"),
    "image gone": (lambda c: c["images"][0].update(file_name="gone.png"), "id 1, gone.png"),
    "other classes": (lambda c: c["categories"][0].update(name="x"), "must be the same"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(own: Path, fault: str) -> None:
    edit, words = FAULTS[fault]
    path = change(own, edit)
    with pytest.raises(ValueError, match=words) as caught:
        open_splits(Data(root=str(own)))
    assert path.name in str(caught.value)


def test_no_json(own: Path) -> None:
    (own / "annotations" / "train.json").write_text("{")
    with pytest.raises(ValueError, match=r"train\.json is no JSON"):
        open_splits(Data(root=str(own)))


def test_an_image_of_another_size(own: Path) -> None:
    change(own, lambda content: content["images"][1].update(width=999))
    samples = open_splits(Data(root=str(own))).train
    with pytest.raises(ValueError, match=r"image id 2: .*the annotations say 999x"):
        samples.image(1)


def test_a_mask_is_missing(own: Path) -> None:
    change(own, lambda content: content["annotations"][0].pop("segmentation"))
    samples = open_splits(Data(root=str(own))).train
    with pytest.raises(ValueError, match="annotation id 1 has no segmentation"):
        samples.target(0, masks=True)


def test_boxes_outside_are_counted(own: Path, caplog: pytest.LogCaptureFixture) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = [-10, -10, 30, 30]
        content["annotations"][1]["bbox"] = [5, 5, 0, 20]
        content["annotations"][2]["bbox"] = [900, 900, 10, 10]

    change(own, spoil)
    with caplog.at_level(logging.WARNING):
        samples = open_splits(Data(root=str(own))).train
    assert "1 boxes reach over their image and are cut, 2 have no area" in caplog.text
    boxes = samples.target(0, masks=False)["boxes"]
    assert boxes.tolist() == [[0, 0, 20, 20]]


def test_broken_xml_and_txt(tmp_path: Path) -> None:
    voc = toy(tmp_path / "voc", "voc", images=2)
    path = voc / "train" / "train_0.xml"
    path.write_text(path.read_text().replace("<xmin>", "<xmin>a"))
    with pytest.raises(ValueError, match=r"train_0\.xml: object 0 has xmin 'a"):
        open_splits(Data(root=str(voc)))
    path.write_text("<annotation>")
    with pytest.raises(ValueError, match=r"train_0\.xml is no XML"):
        open_splits(Data(root=str(voc)))
    path.write_text("<annotation><size><width>abc</width><height>9</height></size></annotation>")
    with pytest.raises(ValueError, match=r"train_0\.xml has width 'abc' and height '9'"):
        open_splits(Data(root=str(voc)))
    yolo = toy(tmp_path / "yolo", "yolo", images=2)
    path = yolo / "labels" / "train" / "train_0.txt"
    for line, words in (
        ("0 a 1 1 1", "is not a class and numbers"),
        ("7 .5 .5 .1 .1", "class 7; data.yaml names 2 classes"),
        ("0 .5 .5 .1", "3 numbers"),
    ):
        path.write_text(line)
        with pytest.raises(ValueError, match=rf"train_0\.txt:1.*{words}"):
            open_splits(Data(root=str(yolo)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b\n", "has no 'names'"),
        ("names: [a, b\nx: {", "is no YAML"),
        ("names: abc", "has names 'abc'; expected a list"),
        ("names: {1: a, 2: b}", "has names .* from the numbers 0, 1"),
    ],
)
def test_a_faulty_data_yaml(text: str, words: str, tmp_path: Path) -> None:
    root = toy(tmp_path / "yolo", "yolo", images=2)
    (root / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"data\.yaml {words}"):
        open_splits(Data(root=str(root)))


def test_layouts_of_others(tmp_path: Path) -> None:
    """COCO's own names, Roboflow's folders, VOC's lists, and a single file that is split."""
    made = toy(tmp_path / "made", images=4)
    official = tmp_path / "official"
    roboflow = tmp_path / "roboflow"
    for part, folder in (("train", "train"), ("val", "valid")):
        content = (made / "annotations" / f"{part}.json").read_text()
        for target, name in (
            (official / f"{part}2017", official / f"annotations/instances_{part}2017.json"),
            (roboflow / folder, roboflow / folder / "_annotations.coco.json"),
        ):
            target.mkdir(parents=True)
            name.parent.mkdir(exist_ok=True)
            name.write_text(content)
            for path in (made / "images" / part).iterdir():
                Image.open(path).save(target / path.name)
    for place in (official, roboflow):
        splits = open_splits(Data(root=str(place)))
        assert (len(splits.train), len(splits.val)) == (3, 4)
        splits.val.image(0)
    (official / "annotations/instances_train2017.json").unlink()
    alone = open_splits(Data(root=str(official)))
    assert alone.train is None
    assert len(alone.val) == 4
    single = tmp_path / "single"
    (single / "images").mkdir(parents=True)
    (single / "all.json").write_text((made / "annotations" / "train.json").read_text())
    for path in (made / "images" / "train").iterdir():
        Image.open(path).save(single / "images" / path.name)
    splits = open_splits(Data(root=str(single), val_fraction=0.25, keep_empty=True))
    assert (len(splits.train), len(splits.val)) == (3, 1)


def test_voc_lists(tmp_path: Path) -> None:
    made = toy(tmp_path / "made", "voc", images=3)
    voc = tmp_path / "voc"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / name).mkdir(parents=True)
    for part in ("train", "val"):
        stems = []
        for path in sorted((made / part).glob("*.xml")):
            stems.append(path.stem)
            (voc / "Annotations" / path.name).write_text(path.read_text())
            Image.open(path.with_suffix(".png")).save(voc / "JPEGImages" / f"{path.stem}.png")
        (voc / "ImageSets/Main" / f"{part}.txt").write_text("\n".join(stems))
    splits = open_splits(Data(root=str(voc)))
    assert (len(splits.train), len(splits.val)) == (2, 3)
    (voc / "Annotations" / "train_1.xml").unlink()
    with pytest.raises(ValueError, match=r"names 1 files that are absent: .*train_1\.xml"):
        open_splits(Data(root=str(voc)))


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of the known layouts"):
        open_splits(Data(root=str(tmp_path)))
    with pytest.raises(ValueError, match="is no folder"):
        open_splits(Data(root=str(tmp_path / "gone")))
