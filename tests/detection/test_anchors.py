"""Anchors, assignment and sampling against the authors' own."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from golden_detection import golden_target
from golden_rule import GOLDEN
from rmt.detection.anchors import AnchorGrid, by_anchor
from rmt.detection.matcher import BACKGROUND, IGNORED, Matcher, Sampler

GRIDS = {
    "retina": AnchorGrid((8, 16, 32, 64, 128), tuple(4 * 2 ** (i / 3) for i in range(3))),
    "rpn": AnchorGrid((4, 8, 16, 32, 64), (8.0,)),
}
MATCHERS = {"retina": Matcher(0.5, 0.4, min_pos_iou=0.0), "rpn": Matcher(0.7, 0.3, min_pos_iou=0.3)}


@pytest.fixture(scope="module")
def micro() -> dict[str, Tensor]:
    with np.load(GOLDEN / "detection" / "micro.npz") as file:
        return {key: torch.from_numpy(value) for key, value in file.items()}


@pytest.fixture(scope="module")
def notes() -> dict:
    return json.loads((GOLDEN / "detection" / "micro.json").read_text())


def maps(grid: AnchorGrid) -> list[Tensor]:
    """Return empty maps of a canvas of 256 x 384."""
    return [torch.empty(1, 1, -(-256 // s), -(-384 // s)) for s in grid.strides]


@pytest.mark.parametrize("name", GRIDS)
def test_grid(micro: dict[str, Tensor], notes: dict, name: str) -> None:
    grid = GRIDS[name]
    for i, (stride, anchors) in enumerate(zip(grid.strides, grid(maps(grid)), strict=True)):
        note = notes[f"anchors.{name}.grid_head.{i}"]
        assert torch.equal(grid.base(stride), micro[f"anchors.{name}.base.{i}"])
        assert torch.equal(anchors[:40], micro[f"anchors.{name}.grid_head.{i}"])
        assert torch.equal(anchors[-10:], micro[f"anchors.{name}.grid_tail.{i}"])
        assert len(anchors) == note["count"]
        assert abs(anchors.double().sum() - note["sum"]) < 1e-6 * note["sum"]


@pytest.mark.parametrize("name", GRIDS)
def test_usable_anchors(micro: dict[str, Tensor], name: str) -> None:
    grid = GRIDS[name]
    limits = {"padded": (240, 361), "size": (240, 361)}
    valid = grid.usable(maps(grid), inside=False, **limits)
    inside = grid.usable(maps(grid), inside=True, **limits)
    assert valid.sum() == micro[f"anchors.{name}.valid_flags_pad240x361_count"]
    assert inside.sum() == micro[f"anchors.{name}.inside_border0_img240x361_count"]


@pytest.mark.parametrize("name", GRIDS)
def test_assignment(micro: dict[str, Tensor], notes: dict, name: str) -> None:
    grid = GRIDS[name]
    match = MATCHERS[name](torch.cat(grid(maps(grid))), golden_target()["boxes"])
    positive = (match >= 0).nonzero()[:, 0]
    assert torch.equal(positive, micro[f"assign.{name}.pos_inds"])
    assert torch.equal(match[positive], micro[f"assign.{name}.pos_gt"])
    counts = notes[f"assign.{name}.pos_inds"]
    assert (match == BACKGROUND).sum() == counts["neg"]
    assert (match == IGNORED).sum() == counts["ignore"]


def test_no_objects_make_background() -> None:
    match = Matcher(0.5, 0.4)(torch.rand(7, 4), torch.zeros(0, 4))
    assert (match == BACKGROUND).all()


def test_the_last_object_wins_a_shared_best_box() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    objects = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]])
    assert Matcher(0.5, 0.5, min_pos_iou=0.5)(boxes, objects).tolist() == [1, BACKGROUND]
    assert Matcher(0.5, 0.5)(boxes, objects).tolist() == [0, BACKGROUND]


def test_boxes_without_area_match_nothing() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [0, 0, 10, 10]])
    assert Matcher(0.5, 0.5)(boxes, boxes).tolist() == [BACKGROUND, 1]


def test_sampler_fills_with_background() -> None:
    match = torch.tensor([0] * 10 + [BACKGROUND] * 100 + [IGNORED] * 5)
    positive, negative = Sampler(64, 0.5)(match)
    assert positive.tolist() == list(range(10))
    assert len(negative) == 54
    assert negative.tolist() == sorted(negative.tolist())
    positive, negative = Sampler(16, 0.25)(match)
    assert (len(positive), len(negative)) == (4, 12)
    positive, negative = Sampler(None, 0.25)(match)
    assert (len(positive), len(negative)) == (10, 100)


def test_rows_of_a_map_follow_the_anchors() -> None:
    map_ = torch.arange(2 * 6 * 2 * 3).view(2, 6, 2, 3)
    rows = by_anchor(map_, 3)
    assert rows.shape == (2, 18, 2)
    assert rows[0, 4].tolist() == [map_[0, 2, 0, 1], map_[0, 3, 0, 1]]  # cell (0, 1), anchor 1
