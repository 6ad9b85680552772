"""Average precision equals pycocotools on the same records, crowds and empty images included."""

import copy
import io
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest

from rmt.detection import coco
from rmt.detection.scores import NAMES, average_precision, by_class

CLASSES = ("ant", "bee", "cat")


def scene(seed: int, *, images: int = 12) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a random data set with crowds and empty images, and noisy answers to it."""
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
            mask = coco.to_mask([polygon], height, width)[None]
            shape = coco.to_rle(mask)[0] if crowd else [polygon]
            objects.append(
                {"image_id": i, "label": label, "bbox": [x, y, w, h], "iscrowd": crowd,
                 "segmentation": shape}
            )  # fmt: skip
            for _ in range(int(rng.integers(0, 3))):
                nx, ny, nw, nh = np.array([x, y, w, h]) + rng.normal(0, 0.08 * min(w, h), 4)
                nw, nh = max(nw, 1.0), max(nh, 1.0)
                own = [nx, ny, nx + nw, ny, nx + nw, ny + nh, nx + nw / 3, ny + nh]
                code = coco.to_rle(coco.to_mask([own], height, width)[None])[0]
                found.append(
                    {"image_id": i, "category_id": 1 + (label if rng.random() < 0.8 else 0),
                     "bbox": [nx, ny, nw, nh], "score": float(rng.random()), "segmentation": code}
                )  # fmt: skip
    return coco.assemble(described, objects, CLASSES), found


def pycocotools(truth: dict[str, Any], found: list[dict[str, Any]], kind: str) -> list[float]:
    api = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):
        ours = api.COCO()
        ours.dataset = copy.deepcopy(truth)
        ours.createIndex()
        judge = COCOeval(ours, ours.loadRes(copy.deepcopy(found)), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats.tolist()


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


def test_perfect_answers() -> None:
    truth, _ = scene(1)
    found = [
        {"image_id": own["image_id"], "category_id": own["category_id"], "bbox": own["bbox"],
         "score": 1.0}
        for own in truth["annotations"] if not own["iscrowd"]
    ]  # fmt: skip
    numbers, _ = average_precision(truth, found, "box")
    assert numbers["AP"] == 100


def test_nothing_found_and_nothing_there() -> None:
    truth, found = scene(2)
    assert average_precision(truth, [], "box")[0]["AP"] == 0
    bare = truth | {"annotations": []}
    assert "AP" not in average_precision(bare, [{**own} for own in found], "mask")[0]
