"""Training transforms: image and labels move together, and every step does what it promises."""

import colorsys
import random

import pytest
import torch
from torch import Tensor

from rmt.data.seeding import seeded
from rmt.segmentation.recipe import Augment, Data, Inference
from rmt.segmentation.transforms import TrainTransform, distort, resize_labels, turn_hue

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def pair(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return an image whose channels repeat its labels, so that both can be compared."""
    labels = torch.randint(0, 250, (height, width), dtype=torch.uint8)
    return labels[None].repeat(3, 1, 1), labels


@pytest.mark.parametrize("size", [(1, 1), (20, 50), (64, 64), (90, 33)])
def test_image_and_labels_move_together(size: tuple[int, int]) -> None:
    augment = Augment(
        scale=(1.0, 1.0), photometric=False, cat_max_ratio=1.0, flip=0.5, flip_vertical=0.5
    )
    transform = TrainTransform(Data(crop=48, **PLAIN), augment, Inference(min_size=0))
    for _ in range(8):
        image, labels = transform(*pair(*size))
        assert image.shape == (3, 48, 48)
        assert labels.shape == (48, 48)
        height, width = min(size[0], 48), min(size[1], 48)
        assert (labels[height:] == 255).all()
        assert (labels[:, width:] == 255).all()
        assert (image[:, height:] == 0).all()
        shown = (image[0, :height, :width] * 255).round().byte()
        assert torch.equal(shown, labels[:height, :width])


def test_padding_is_the_mean_colour() -> None:
    augment = Augment(scale=(1.0, 1.0), photometric=False)
    image, _ = TrainTransform(Data(crop=8), augment, Inference(min_size=0))(*pair(4, 4))
    assert (image[:, 4:] == 0).all()  # after normalisation, as in mmseg


def test_scale_multiplies_the_test_size() -> None:
    """(512, 2048) times 0.5 to 2.0: sizes as mmcv rounds them."""
    seen = set()

    class Look(TrainTransform):
        def _crop(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            seen.add(tuple(labels.shape))
            assert image.shape[1:] == labels.shape
            return super()._crop(image, labels)

    transform = Look(Data(crop=32, **PLAIN), Augment(), Inference(min_size=40, max_size=100))
    for i in range(40):
        with seeded(i):
            transform(*pair(30, 60))
    short = {min(size) for size in seen}
    assert min(short) >= 20
    assert max(short) <= 80
    assert max(short) - min(short) > 30
    assert all(abs(w - 2 * h) <= 1 for h, w in seen)


def test_crops_are_mixed_where_they_can_be() -> None:
    """Two halves: 1 random crop in 8 has a quarter of each, 3 in 4 after ten tries."""
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[:, 32:] = 1
    image = labels[None].repeat(3, 1, 1)

    def mixed(share: float) -> float:
        augment = Augment(scale=(1.0, 1.0), photometric=False, cat_max_ratio=share)
        transform = TrainTransform(Data(crop=12, **PLAIN), augment, Inference(min_size=0))
        random.seed(0)
        parts = [transform(image, labels)[1].float().mean() for _ in range(300)]
        return sum(0.25 < part < 0.75 for part in parts) / len(parts)

    assert 0.05 < mixed(1.0) < 0.2
    assert 0.65 < mixed(0.75) < 0.85


def test_labels_are_resized_to_the_nearest_pixel() -> None:
    labels = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)
    assert resize_labels(labels, (4, 2)).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert resize_labels(labels, (1, 1)).tolist() == [[1]]


@pytest.mark.parametrize(
    ("degrees", "saturation"), [(0.0, 1.0), (36.0, 1.0), (-34.0, 0.5), (10.0, 1.5)]
)
def test_hue_and_saturation(degrees: float, saturation: float) -> None:
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    ours = turn_hue(image, degrees, saturation=saturation).double()
    for y in range(8):
        for x in range(8):
            h, s, v = colorsys.rgb_to_hsv(*(image[:, y, x].double() / 255).tolist())
            rgb = colorsys.hsv_to_rgb((h + degrees / 360) % 1, min(s * saturation, 1), v)
            assert (ours[:, y, x] - 255 * torch.tensor(rgb)).abs().max() <= 0.5 + 1e-3


def test_distortion_varies_and_depends_on_the_seed_only() -> None:
    image = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    results = []
    for seed in (*range(12), 0):
        with seeded(seed):
            results.append(distort(image))
    assert torch.equal(results[0], results[-1])
    assert len({result.numpy().tobytes() for result in results}) > 6
    assert all(result.dtype == torch.uint8 for result in results)
