"""Detection tile by tile: objects in the image's pixels, each one once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import find_objects, label
from torch import Tensor, nn

import rmt
import rmt_cli
from rmt.data.windows import starts
from rmt.detection.detector import Detector
from rmt.detection.predict import ObjectPredictor, Options
from rmt.detection.rle import moved, to_mask, to_rle
from rmt.tools.predict import Predictor


class Bright(Detector):
    """Finds the bright regions of what it sees; larger ones score higher."""

    has_masks = True

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.zeros(1))
        self.info, self.num_classes, self.iou_threshold = {}, 1, 0.5
        self.sizes: list[tuple[int, ...]] = []

    def detect(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    losses = detect

    def forward(self, images: list[Tensor], **kwargs: Any) -> Any:
        self.sizes += [tuple(image.shape[1:]) for image in images]
        return [self.one(image) for image in images]

    def one(self, image: Tensor) -> dict[str, Tensor]:
        regions, _ = label(image[0].numpy() > 0.5)
        boxes, masks = [], []
        for i, (rows, columns) in enumerate(find_objects(regions), start=1):
            boxes.append([columns.start, rows.start, columns.stop, rows.stop])
            masks.append(regions == i)
        corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
        area = (corners[:, 2:] - corners[:, :2]).prod(dim=1)
        order = area.argsort(descending=True)
        found = np.array(masks, dtype=bool).reshape(-1, *image.shape[1:])
        return {
            "boxes": corners[order],
            "scores": (0.5 + area / (area.max() * 2) if len(area) else area)[order],
            "labels": torch.zeros(len(boxes), dtype=torch.long),
            "masks": torch.from_numpy(found)[order],
        }


BOXES = [(5, 5, 25, 20), (90, 40, 110, 52), (150, 95, 199, 119), (60, 100, 66, 106)]


def scene() -> Image.Image:
    pixels = np.zeros((120, 200, 3), dtype=np.uint8)
    for x0, y0, x1, y1 in BOXES:
        pixels[y0:y1, x0:x1] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_each_object_is_found_once_and_whole(batch_size: int) -> None:
    model = Bright()
    options = Options(tile=64, tile_overlap=0.4, tile_batch_size=batch_size)
    predictor = ObjectPredictor(model, options)
    (result,) = predictor.predict([predictor.prepare(scene())])
    assert set(model.sizes) == {(64, 64)}
    found = result["detections"]
    assert sorted(tuple(entry["box"]) for entry in found) == sorted(BOXES)
    scores = [entry["score"] for entry in found]
    assert scores == sorted(scores, reverse=True)
    seen = np.zeros((120, 200), dtype=np.uint8)
    for entry in found:
        seen += to_mask(entry["mask"], 120, 200)
    assert np.array_equal(seen, np.asarray(scene())[..., 0] // 255)


def test_a_small_object_beside_a_large_one_stays() -> None:
    """Only a box that a tile's border may have cut counts as a part of a larger one."""
    pixels = np.zeros((64, 150, 3), dtype=np.uint8)
    pixels[8:50, 70:110] = 255
    pixels[10:48, 72:108] = 0  # a frame, whose box holds a small object
    pixels[20:26, 80:86] = 255
    predictor = ObjectPredictor(Bright(), Options(tile=64, tile_overlap=0.5))
    (result,) = predictor.predict([predictor.prepare(Image.fromarray(pixels))])
    boxes = {tuple(entry["box"]) for entry in result["detections"]}
    assert {(70, 8, 110, 50), (80, 20, 86, 26)} <= boxes


@pytest.mark.parametrize("corner", [(0, 0), (7, 3), (30, 20), (0, 20)])
def test_masks_move_into_the_image(corner: tuple[int, int]) -> None:
    noise = np.random.default_rng(0)
    for level in (0.0, 0.3, 1.0):
        mask = (noise.random((10, 20)) < level).astype(np.uint8)
        full = np.zeros((30, 50), dtype=np.uint8)
        x, y = corner
        full[y : y + 10, x : x + 20] = mask
        assert moved(to_rle(mask[None])[0], corner, (30, 50)) == to_rle(full[None])[0]


def test_where_windows_start() -> None:
    assert starts(100, 40, 30) == [0, 30, 60]
    assert starts(101, 40, 30) == [0, 30, 60, 61]
    assert starts(30, 40, 30) == [0]


def test_tiles_from_the_command(tmp_path: Path) -> None:
    """An image of one tile gives what it gives without tiles."""
    model = rmt.create_detector("mask_rcnn", "rmt_nano", num_classes=2, min_size=64, max_size=96)
    model.save_pretrained(tmp_path / "model")
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    words = ["predict", tmp_path / "a.png", "--checkpoint", tmp_path / "model", "--json"]

    def detections(*options: object) -> list[dict[str, Any]]:
        file = tmp_path / "records.json"
        assert rmt_cli.main([str(word) for word in (*words, file, *options)]) == 0
        return json.loads(file.read_text())[0]["detections"]

    whole = detections("--score", 0)
    assert whole
    one = detections("--score", 0, "--tile", 100)
    assert [entry["mask"] for entry in one] == [entry["mask"] for entry in whole]
    assert [entry["box"] for entry in one] == [pytest.approx(entry["box"]) for entry in whole]
    tiled = detections("--score", 0, "--tile", 40, "--tile-overlap", 0.5)
    assert max(entry["box"][2] for entry in tiled) > 60
    assert all(entry["mask"]["size"] == [60, 90] for entry in tiled)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 8}, "tile is 8; it must be at least 32"),
        ({"tile_overlap": 1.0}, "tile_overlap is 1.0"),
        ({"tile_batch_size": 0}, "tile_batch_size is 0"),
    ],
)
def test_impossible_tiles(options: dict[str, Any], message: str) -> None:
    model = rmt.create_detector("retinanet", "rmt_nano", num_classes=2, min_size=64, max_size=96)
    with pytest.raises(ValueError, match=message):
        Predictor(model, **options)
