"""Data sets in three formats: read alike, and what cannot be used is left out by name."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from limits import memory_limit, time_limit
from rmt.data.splits import Splits
from rmt.detection.datasets import FORMATS, open_splits
from rmt.detection.recipe import Data
from rmt.detection.rle import run_lengths, to_mask, to_rle
from rmt.detection.samples import Samples
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
        found.pop("train_5.png", None)
        assert found.keys() == expected.keys()
        for name, target in found.items():
            assert np.array_equal(target["labels"], expected[name]["labels"])
            np.testing.assert_allclose(target["boxes"], expected[name]["boxes"], atol=1e-4)
    # The last training image has no object; it is background in YOLO's sets.
    assert (len(ours.train), len(ours.val)) == (6 if ours.format == "YOLO" else 5, 6)
    for keep_empty, count in ((True, 6), (False, 5)):
        asked = open_splits(Data(root=str(root), keep_empty=keep_empty))
        assert len(asked.train) == count
        assert "1 training image without objects" in asked.describe()


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
        assert np.array_equal(to_mask(plain, height, width), mask)
        code = to_rle(mask[None])[0]
        assert np.array_equal(to_mask(code, height, width), mask)
        assert run_lengths(code["counts"]) == plain["counts"]


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


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no list": (lambda c: c.pop("categories"), "has no list 'categories'"),
    "no image there": (
        lambda c: [own.update(file_name="gone.png") for own in c["images"]],
        "none of its 3 images can be used",
    ),
    "no object left": (lambda c: c["annotations"].clear(), "no image with an object to train on"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_makes_no_data_set_is_refused(own: Path, fault: str) -> None:
    edit, words = REFUSED[fault]
    path = change(own, edit)
    with pytest.raises(ValueError, match=words) as caught:
        open_splits(Data(root=str(own), format="coco"))
    assert path.name in str(caught.value)


LEFT_OUT: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no box": (lambda c: c["annotations"][1].pop("bbox"), ""),  # its mask has one
    "neither": (
        lambda c: [c["annotations"][1].pop(key) for key in ("bbox", "segmentation")],
        "object without a box: train.json, annotation id 2",
    ),
    "no size": (lambda c: c["images"][0].pop("width"), ""),
    "size of words": (lambda c: c["images"][0].update(height="many"), ""),
    "no id": (lambda c: c["annotations"][0].pop("id"), ""),
    "image id twice": (lambda c: c["images"][1].update(id=1), "image whose id occurs before"),
    "annotation id twice": (lambda c: c["annotations"][1].update(id=1), ""),
    "no such image": (lambda c: c["annotations"][0].update(image_id=99), "image_id 99"),
    "no such category": (lambda c: c["annotations"][0].update(category_id=99), "category_id 99"),
    "bad box": (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "bbox [1, 2, 3]; expected"),
    "box of words": (lambda c: c["annotations"][0].update(bbox=["a", 2, 3, 4]), "four numbers"),
    "mask of words": (lambda c: c["annotations"][0].update(segmentation="m"), "of type str"),
    "mask of two points": (
        lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]),
        "a segmentation of fewer than three points",
    ),
    "mask of words in points": (
        lambda c: c["annotations"][0].update(segmentation=[["a", 2, 3, 4, 5, 6]]),
        "not a list of polygons",
    ),
    "code of a number": (
        lambda c: c["annotations"][0].update(segmentation={"size": [1, 1], "counts": 3}),
        "a segmentation of type dict",
    ),
    "code of another size": (
        lambda c: c["annotations"][0].update(segmentation={"size": [1, 1], "counts": "x"}),
        "a segmentation of size [1, 1] in an image of",
    ),
    "counts that do not fill": (
        lambda c: c["annotations"][0].update(segmentation=_code(c, [1, 2, 3])),
        "run-length code does not fill its image",
    ),
    "counts of words": (
        lambda c: c["annotations"][0].update(segmentation=_code(c, ["a", None])),
        "run-length code",
    ),
    "no code": (
        lambda c: c["annotations"][0].update(segmentation=_code(c, "ä!")),
        "run-length code",
    ),
    "half a code": (
        lambda c: c["annotations"][0].update(segmentation=_code(c, "PPP")),
        "run-length code",
    ),
    "code of too few": (
        lambda c: c["annotations"][0].update(segmentation=_code(c, "1")),
        "run-length code",
    ),
    "no area": (lambda c: c["annotations"][0].update(area=None), ""),
    "area of words": (lambda c: c["annotations"][0].update(area="3"), ""),
    "crowd of null": (lambda c: c["annotations"][0].update(iscrowd=None), ""),
    "half a crowd": (
        lambda c: c["annotations"][0].update(iscrowd=0.5),
        "iscrowd 0.5; expected 0 or 1",
    ),
    "name of a number": (lambda c: c["images"][0].update(file_name=3), "train.json, image id 1"),
    "no object": (lambda c: c["annotations"].insert(0, 7), "annotation of another type"),
    "image gone": (lambda c: c["images"][0].update(file_name="gone.png"), "image id 1, gone.png"),
}


@pytest.mark.parametrize("fault", LEFT_OUT)
def test_one_fault_is_left_out_by_name(
    own: Path, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named in the log and counted, or it is none: what is missing can be told otherwise."""
    edit, words = LEFT_OUT[fault]
    change(own, edit)
    with caplog.at_level(logging.WARNING):
        splits = open_splits(Data(root=str(own), max_bad_samples=5))
    named = [message for message in caplog.messages if message.startswith("left out: ")]
    assert splits.train is not None
    if not words:
        assert not named
        assert len(splits.train.only()["annotations"]) == 7
        return
    assert any(words in message for message in named), named
    assert f"{len(named)} left out: " in splits.describe()
    for i in range(len(splits.train)):
        splits.train.image(i)
        splits.train.target(i, masks=True)


def test_too_many_faults(own: Path) -> None:
    change(own, lambda c: [entry.pop("category_id") for entry in c["annotations"][:3]])
    assert "3 left out" in open_splits(Data(root=str(own), max_bad_samples=3)).describe()
    with pytest.raises(ValueError, match=r"more than data\.max_bad_samples=2 .*of no listed class"):
        open_splits(Data(root=str(own), max_bad_samples=2))


def test_classes_of_another_order(own: Path) -> None:
    """Labels follow the names, whatever the order and the ids in each file."""
    before = targets(opened(own).val)

    def swap(content: dict[str, Any]) -> None:
        content["categories"].reverse()
        _renumber(content, {1: 30, 2: 4})

    change(own, swap, "val")
    after = opened(own)
    assert after.classes == SHAPES
    assert after.val.category_ids == (30, 4)
    for name, target in targets(after.val).items():
        assert np.array_equal(target["labels"], before[name]["labels"])


def test_other_classes(own: Path) -> None:
    change(own, lambda content: content["categories"][0].update(name="x"), "val")
    with pytest.raises(ValueError, match=r"classes that the first split lacks: \['x'\]"):
        opened(own)


def opened(root: Path, **keys: Any) -> Splits:
    return open_splits(Data(root=str(root), **keys))


def test_no_json(own: Path) -> None:
    (own / "annotations" / "train.json").write_text('{"images": [], "annotations": []')
    with pytest.raises(ValueError, match=r"train\.json is not JSON"):
        opened(own)


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


def test_boxes_outside_are_counted(own: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = [-10, -10, 30, 30]
        content["annotations"][1]["bbox"] = [5, 5, 0, 20]
        content["annotations"][2]["bbox"] = [900, 900, 10, 10]

    change(own, spoil)
    splits = open_splits(Data(root=str(own)))
    found = splits.describe()
    assert "2 boxes without area in their image, 1 box cut at its image's border" in found
    samples = splits.train
    boxes = samples.target(0, masks=False)["boxes"]
    assert boxes.tolist() == [[0, 0, 20, 20]]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("<xmin>", "<xmin>a", "1 object that makes no sense (|object 0 has xmin 'a"),
        ("</annotation>", "", "1 broken XML file (|no element found"),
        ("disc</name>", "</name>", "object that makes no sense|has no <name>"),
        ("train_0.png", "train_9.png", ""),  # found by its own name
        ("<width>64</width>", "<width>abc</width>", ""),
        ("<height>80</height>", "<height>0</height>", ""),
    ],
)
def test_a_faulty_xml_file(
    old: str, new: str, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = toy(tmp_path, "voc", images=3)
    path = root / "train" / "train_0.xml"
    assert old in path.read_text() or "disc" in old
    path.write_text(path.read_text().replace(old, new, 1))
    with caplog.at_level(logging.WARNING):
        splits = opened(root)
    kind, _, said = words.partition("|")
    assert kind in splits.describe()
    assert any(said in message for message in caplog.messages) or not said
    if not words:
        assert "left out" not in splits.describe()
        assert len(splits.train) == 2
        splits.train.image(0)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 a 1 1 1", "is not a class and numbers"),
        ("7 .5 .5 .1 .1", "class 7; the names are 2"),
        ("0.5 .5 .5 .1 .1", "class 0.5; the names are 2"),
        ("0 .5 .5 .1", "3 numbers"),
        ("0 50 50 10 10", "numbers above 1"),
        ("0 .5 .5 nan .1", "numbers above 1"),
    ],
)
def test_a_faulty_label_line(
    line: str, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = toy(tmp_path, "yolo", images=3)
    path = root / "labels" / "train" / "train_0.txt"
    path.write_text(path.read_text() + line)
    with caplog.at_level(logging.WARNING):
        splits = opened(root)
    assert any("train/train_0.txt:4: " in m and words in m for m in caplog.messages)
    assert "1 label line that makes no sense" in splits.describe()
    assert len(splits.train.target(0, masks=False)["labels"]) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b\n", "has no 'names'"),
        ("names: [a, b\nx: {", "is not YAML"),
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
    assert "1 absent XML file (train_1 of train.txt)" in opened(voc).describe()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of the known layouts"):
        open_splits(Data(root=str(tmp_path)))
    with pytest.raises(ValueError, match="does not exist"):
        open_splits(Data(root=str(tmp_path / "gone")))


def changed(root: Path, change: Callable[[dict], object]) -> None:
    path = root / "annotations" / "train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def spoil(**values: object) -> Callable[[dict], object]:
    """Return what changes entries of the first annotation."""
    return lambda content: content["annotations"][0].update(values)


BIG = 10**400


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (spoil(bbox=[BIG, 1, 2, 3]), "1 object without a box ("),
        (spoil(bbox=["1", "2", "3", str(BIG)]), "without a box ("),
        (spoil(bbox=[1e300, 1, 1e300, 3]), "without a box ("),
        (spoil(bbox=[1, BIG, "3", 4]), "without a box ("),
        (spoil(category_id=BIG), "1 annotation of no listed class"),
        (spoil(image_id=BIG), "1 annotation of no listed image ("),
        (spoil(segmentation=[[BIG] * 6]), "a faulty segmentation ("),
        (spoil(segmentation=[[BIG, 1.5] * 3]), "a faulty segmentation ("),
        (spoil(segmentation=[[float("nan"), 1.5] * 3]), "a faulty segmentation ("),
        (spoil(segmentation=[[1e9] * 6]), "far outside of its image"),
        (spoil(segmentation=[[0, 0, 600, 600] * 2000]), "outline is"),
        (spoil(segmentation={"size": [80, 64], "counts": "o" * 10**6}), "not fill its image"),
        (lambda c: c["images"][0].update(id=BIG), "1 image without id or file_name ("),
    ],
)
def test_numbers_out_of_all_proportion(
    change: Callable[[dict], object], words: str, tmp_path: Path
) -> None:
    root = toy(tmp_path)
    changed(root, change)
    with memory_limit(1000), time_limit(20):
        assert words in open_splits(Data(root=str(root))).describe()


@pytest.mark.parametrize(("width", "height"), [(BIG, BIG), (10**7, 10**7), (str(BIG), 1e308)])
def test_sizes_out_of_all_proportion_are_those_of_the_image(
    width: object, height: object, tmp_path: Path
) -> None:
    """Masks are drawn in images of the size that is told."""
    root = toy(tmp_path)
    expected = open_splits(Data(root=str(root))).train.target(0, masks=True)

    def change(content: dict) -> None:
        image = content["images"][0]
        image.update(width=width, height=height)
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"] and isinstance(entry["segmentation"], list):
                entry.pop("bbox")

    changed(root, change)
    with memory_limit(1000):
        found = open_splits(Data(root=str(root))).train.target(0, masks=True)
    assert np.array_equal(found["masks"], expected["masks"])


def test_what_breaks_a_file_as_a_whole(tmp_path: Path) -> None:
    root = toy(tmp_path)
    path = root / "annotations" / "train.json"
    whole = path.read_text()
    for text, words in (
        (whole.replace('"images"', f'"x": {"[" * 10**5}, "images"', 1), "nested too deep"),
        (whole.replace('"images"', f'"x": {"1" * 5000}, "images"', 1), "Exceeds the limit"),
        (whole[:-100], "is not JSON"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words) as caught:
            open_splits(Data(root=str(root)))
        assert "train.json" in str(caught.value)


def test_a_group_of_another_type_is_ignored(tmp_path: Path) -> None:
    root = toy(tmp_path)
    changed(root, lambda c: [entry.update(supercategory=[1]) for entry in c["categories"]])
    assert open_splits(Data(root=str(root))).classes == SHAPES
