"""Boxes and masks are augmented together with the image."""

import random

import pytest
import torch

from rmt.detection.augment import TrainTransform, brightened, cropped, mirrored
from rmt.detection.recipe import Augment, Model
from rmt.training.fit import load_recipe


def example(height: int = 60, width: int = 90) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return a black image with two white rectangles, their boxes and masks."""
    boxes = torch.tensor([[10.0, 20, 40, 50], [50, 5, 80, 15]])
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    image = (masks.amax(dim=0) * 255).expand(3, -1, -1)
    return image, {"boxes": boxes, "labels": torch.tensor([3, 5]), "masks": masks}


def assert_consistent(image: torch.Tensor, target: dict[str, torch.Tensor], slack: float) -> None:
    """Assert that each mask fills its box, and that the image is white there."""
    assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
    assert target["masks"].shape[1:] == image.shape[1:]
    for box, mask in zip(target["boxes"], target["masks"], strict=True):
        y, x = mask.nonzero().unbind(1)
        tight = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1])
        assert (tight - box).abs().max() <= slack
        if mask.sum() > 60:  # smaller ones consist mostly of their border
            assert image[0][mask.bool()].float().mean() > 150


@pytest.mark.parametrize("axis", [1, 2])
def test_mirror(axis: int) -> None:
    image, target = example()
    turned, new = mirrored(image, target, axis=axis)
    assert_consistent(turned, new, 0)
    back, old = mirrored(turned, new, axis=axis)
    assert torch.equal(back, image)
    assert torch.equal(old["boxes"], target["boxes"])


def test_crop_keeps_what_is_inside() -> None:
    random.seed(0)
    for _ in range(30):
        image, target = cropped(*example(), 20, 40)
        assert 20 <= min(image.shape[1:]) <= max(image.shape[1:]) <= 40
        assert_consistent(image, target, 0)


def test_pipelines() -> None:
    model = Model(min_size=48, max_size=100)
    for augment in (
        Augment(),
        Augment(flip_vertical=0.5, min_sizes=(32, 64), crop=0.5, crop_min_sizes=(50, 70),
                crop_size=(30, 45)),
    ):  # fmt: skip
        vary = TrainTransform(model, augment)
        for seed in range(20):
            random.seed(seed)
            image, target = vary(*example())
            assert max(image.shape[1:]) <= 100
            if not augment.crop:
                assert tuple(image.shape) == (3, 48, 72)
            assert_consistent(image, target, 2.1)


def test_no_objects() -> None:
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.long),
        "masks": torch.zeros(0, 60, 90, dtype=torch.uint8),
    }
    vary = TrainTransform(Model(min_size=48), Augment(flip=1, flip_vertical=1, crop=1))
    image, target = vary(example()[0], empty)
    assert target["masks"].shape == (0, *image.shape[1:])


def test_no_box_without_area_is_left() -> None:
    """A box that resizing rounds to nothing is dropped with its label and mask."""
    image, target = example()
    target["boxes"][1] = torch.tensor([89.99999, 5, 90, 15])
    for crop in (0.0, 1.0):
        how = Augment(flip=0, crop=crop, crop_size=(90, 90))
        _, new = TrainTransform(Model(min_size=32, max_size=100), how)(image, target)
        assert new["labels"].tolist() == [3]
        assert len(new["boxes"]) == len(new["masks"]) == 1


def test_multi_scale_recipe_is_the_release() -> None:
    augment = load_recipe("coco/mask_rcnn_rmt_s_3x").augment
    assert augment.min_sizes == tuple(range(480, 801, 32))
    assert (augment.crop, augment.crop_min_sizes) == (0.5, (400, 500, 600))
    assert (augment.crop_size, augment.flip) == ((384, 600), 0.5)


def test_brightness() -> None:
    random.seed(1)
    image = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    values = {int(brightened(image, 0.3)[0, 0, 0]) for _ in range(20)}
    assert len(values) > 5
