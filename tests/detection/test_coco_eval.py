"""Average precision equals pycocotools on the same records, crowds and empty images included."""

import copy
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rmt_cli
from rmt.detection import create_detector
from rmt.detection.annotations import assemble
from rmt.detection.coco_eval import NAMES, average_precision, by_class
from rmt.detection.rle import to_mask, to_rle
from rmt.detection.toy import toy

CLASSES = ("ant", "bee", "cat")


def scene(seed: int, *, images: int = 12) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a random data set with crowds and empty images, and noisy detections."""
    rng = np.random.default_rng(seed)
    described, objects, found = [], [], []
    for i in range(1, images + 1):
        height, width = int(rng.integers(60, 400)), int(rng.integers(60, 400))
        described.append({"file_name": f"{i}.png", "height": height, "width": width})
        for _ in range(int(rng.integers(0, 7)) if i % 5 else 0):
            x, y = rng.uniform(0, width - 12), rng.uniform(0, height - 12)
            w, h = rng.uniform(8, width - x), rng.uniform(8, height - y)
            label, crowd = int(rng.integers(3)), int(rng.random() < 0.15)
            polygon = [x, y, x + w, y, x + w, y + h, x + w / 3, y + h]
            mask = to_mask([polygon], height, width)[None]
            shape = to_rle(mask)[0] if crowd else [polygon]
            objects.append(
                {"image_id": i, "label": label, "bbox": [x, y, w, h], "iscrowd": crowd,
                 "segmentation": shape}
            )  # fmt: skip
            for _ in range(int(rng.integers(0, 3))):
                nx, ny, nw, nh = np.array([x, y, w, h]) + rng.normal(0, 0.08 * min(w, h), 4)
                nw, nh = max(nw, 1.0), max(nh, 1.0)
                own = [nx, ny, nx + nw, ny, nx + nw, ny + nh, nx + nw / 3, ny + nh]
                code = to_rle(to_mask([own], height, width)[None])[0]
                found.append(
                    {"image_id": i, "category_id": 1 + (label if rng.random() < 0.8 else 0),
                     "bbox": [nx, ny, nw, nh], "score": float(rng.random()), "segmentation": code}
                )  # fmt: skip
    return assemble(described, objects, CLASSES), found


def pycocotools(truth: dict[str, Any], found: list[dict[str, Any]], kind: str) -> list[float]:
    from pycocotools import coco as api
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):
        ours = api.COCO()
        ours.dataset = copy.deepcopy(truth)
        ours.createIndex()
        evaluator = COCOeval(ours, ours.loadRes(copy.deepcopy(found)), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats.tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["box", "mask"])
def test_equal_to_pycocotools(seed: int, kind: str) -> None:
    truth, found = scene(seed)
    other = {"box": "segmentation", "mask": "bbox"}[kind]
    found = [{k: v for k, v in own.items() if k != other} for own in found]
    expected = pycocotools(truth, found, {"box": "bbox", "mask": "segm"}[kind])
    numbers, table = average_precision(copy.deepcopy(truth), copy.deepcopy(found), kind)
    for name, value in zip(NAMES, expected, strict=True):
        if value > -1:
            assert abs(numbers[name] / 100 - value) < 1e-12, name
        else:
            assert name not in numbers
    assert abs(np.mean(list(by_class(table, truth).values())) - numbers["AP"]) < 1e-9


# pycocotools uses an old interface of numpy.
@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
@torch.no_grad()
def test_the_commands_agree(head: str, tmp_path: Path) -> None:
    """What `rmt eval` prints is pycocotools' results on what `rmt predict` writes."""
    root = toy(tmp_path / "toy")
    model = create_detector(head, "rmt_nano", num_classes=2, min_size=64, max_size=96)
    for layer in [model.head] if head == "retinanet" else [model.rpn, *model.box_heads]:
        nn.init.normal_(layer.cls.weight, std=0.1)
        nn.init.zeros_(layer.cls.bias)
    model.info["label_names"] = ["disc", "square"]
    weights, photos = str(model.save_pretrained(tmp_path / "model")), root / "images" / "val"
    words = ["eval", "--checkpoint", weights, "--json", str(tmp_path / "eval.json")]
    keys = [f"--data.root={root}", "--data.num_workers=0", "--trainer.accelerator=cpu"]
    assert rmt_cli.main([*words, *keys]) == 0
    words = ["predict", str(photos), "--checkpoint", weights]
    assert rmt_cli.main([*words, "--json", str(tmp_path / "predict.json")]) == 0
    found = json.loads((tmp_path / "eval.json").read_text())["metrics"]
    truth = json.loads((root / "annotations" / "val.json").read_text())
    assert any(entry["iscrowd"] for entry in truth["annotations"])
    ids = {entry["file_name"]: entry["id"] for entry in truth["images"]}
    records = []
    for record in json.loads((tmp_path / "predict.json").read_text()):
        for own in record["detections"]:
            x0, y0, x1, y1 = own["box"]
            shared = {"image_id": ids[Path(record["image"]).name], "score": own["score"]}
            shared |= {"category_id": own["label"] + 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            records.append(shared | ({"segmentation": own["mask"]} if "mask" in own else {}))
    kinds = {"box": ("bbox", "segmentation")}
    if model.has_masks:
        kinds["mask"] = ("segm", "bbox")
    for kind, (name, other) in kinds.items():
        evaluated = [{k: v for k, v in own.items() if k != other} for own in records]
        expected = dict(zip(NAMES, pycocotools(truth, evaluated, name), strict=True))
        assert expected["AP50"] > 0
        for key, value in expected.items():
            if value > -1:
                # The command writes six digits.
                assert found[f"{kind}_{key}"] == pytest.approx(100 * value, rel=1e-5), (kind, key)


def test_perfect_predictions() -> None:
    truth, _ = scene(1)
    found = [
        {"image_id": own["image_id"], "category_id": own["category_id"], "bbox": own["bbox"],
         "score": 1.0}
        for own in truth["annotations"] if not own["iscrowd"]
    ]  # fmt: skip
    numbers, _ = average_precision(truth, found, "box")
    assert numbers["AP"] == 100


def test_objects_may_count_from_zero() -> None:
    truth, found = scene(1)
    expected, _ = average_precision(copy.deepcopy(truth), copy.deepcopy(found), "box")
    for i, own in enumerate(truth["annotations"]):
        own["id"] = i
    assert average_precision(truth, found, "box")[0] == expected


def test_nothing_found_and_nothing_there() -> None:
    truth, found = scene(2)
    assert average_precision(truth, [], "box")[0]["AP"] == 0
    bare = truth | {"annotations": []}
    assert "AP" not in average_precision(bare, [{**own} for own in found], "mask")[0]


def test_objects_to_be_ignored_are_neither_hits_nor_misses() -> None:
    """VOC's difficult objects: to find one costs nothing, and neither does to overlook it."""
    images = [{"file_name": "x.png", "height": 100, "width": 100}]
    boxes = ([10, 10, 30, 30], [60, 60, 30, 30])
    objects = [{"image_id": 1, "label": 0, "bbox": list(box)} for box in boxes]
    objects[1]["ignore"] = 1
    truth = assemble(images, objects, ["thing"])
    found = [
        {"image_id": 1, "category_id": 1, "bbox": list(box), "score": score}
        for box, score in zip(boxes, (0.5, 0.9), strict=True)
    ]
    for records in (found, found[:1]):
        numbers, _ = average_precision(truth, records, "box")
        assert numbers["AP"] == pytest.approx(100)
        assert numbers["AR100"] == pytest.approx(100)
    del objects[1]["ignore"]
    numbers, _ = average_precision(assemble(images, objects, ["thing"]), found[:1], "box")
    assert numbers["AR100"] == pytest.approx(50)
