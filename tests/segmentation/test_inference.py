"""Windows, scales and mirroring, each against a plain computation."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rmt.segmentation import create_segmenter
from rmt.segmentation.blocks import resize
from rmt.segmentation.chunked_resize import strips
from rmt.segmentation.inference import (
    label_map,
    normalise,
    probabilities,
    resize_photo,
    sliding,
)
from rmt.segmentation.recipe import Data, Inference, SegmentationRecipe


class Position(nn.Module):
    """Logits (B, 2, h, w) that are the row and column of a pixel in its window."""

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        grid = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        return torch.stack(grid).float()[None].expand(len(images), -1, -1, -1)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return create_segmenter("semantic_fpn", "rmt_nano", 4, channels=16).eval()


def photo(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def test_windows_are_averaged_by_count() -> None:
    """Length 10, window 6, stride 3: windows at 0, 3 and, moved back, 4."""
    logits = sliding(Position(), torch.zeros(1, 3, 6, 10), window=6, stride=3)
    starts = [0, 3, 4]
    columns = [
        torch.tensor([x - s for s in starts if s <= x < s + 6]).float().mean() for x in range(10)
    ]
    assert torch.equal(logits[0, 1, 0], torch.stack(columns))
    assert torch.equal(logits[0, 0, :, 0], torch.arange(6.0))


@pytest.mark.parametrize(
    ("size", "expected"), [((5, 4), 1), ((6, 6), 1), ((6, 7), 2), ((13, 12), 9)]
)
def test_number_of_windows(size: tuple[int, int], expected: int) -> None:
    seen = []

    class Count(Position):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.shape[2:])
            return super().forward(images)

    assert sliding(Count(), torch.zeros(1, 3, *size), window=6, stride=5).shape[2:] == size
    assert len(seen) == expected


def test_one_window_is_the_whole_image(model: nn.Module) -> None:
    images = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        windowed = sliding(model, images, window=64, stride=32)
        torch.testing.assert_close(windowed, model(images))


@pytest.mark.parametrize("size", [(30, 40), (1, 70), (64, 64)])
def test_small_images_are_padded_to_the_window(model: nn.Module, size: tuple[int, int]) -> None:
    """The network sees images as wide as its training crops; the padding is cropped again."""
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        ours = sliding(model, images, window=64, stride=48, pad=True)
        full = torch.zeros(1, 3, 64, max(64, size[1]))
        full[:, :, : size[0], : size[1]] = images
        whole = sliding(model, full, window=64, stride=48)
    assert ours.equal(whole[:, :, : size[0], : size[1]])


def test_the_window_of_a_recipe_is_the_training_crop() -> None:
    crop = Data(crop=96)
    whole = SegmentationRecipe(data=crop, inference=Inference(window=None))
    assert whole.inference.window == 96
    assert SegmentationRecipe(data=crop).inference.window == 0


@pytest.mark.parametrize("size", [(37, 61), (1, 1), (90, 30)])
def test_probabilities_have_the_photos_size(model: nn.Module, size: tuple[int, int]) -> None:
    ours = probabilities(model, photo(*size), Inference(min_size=48, max_size=96))
    assert ours.shape == (4, *size)
    torch.testing.assert_close(ours.sum(dim=0), torch.ones(size))


@torch.no_grad()
def test_scales_and_mirror_average_probabilities(model: nn.Module) -> None:
    image = photo(45, 70)
    options = Inference(min_size=64, max_size=128, scales=(0.5, 1.0, 1.25), flip=True)
    views = []
    for height, width in ((32, 50), (64, 100), (80, 124)):  # 0.5 and 1.25 of 64; ratio kept
        scaled = resize_photo(image, options, scale=height / 64)
        assert scaled.shape == (3, height, width)
        x = normalise(scaled, *model.channel_statistics)[None]
        views.append(resize(model(x), (45, 70)).softmax(dim=1))
        views.append(resize(model(x.flip(3)), (45, 70)).softmax(dim=1).flip(3))
    torch.testing.assert_close(probabilities(model, image, options), torch.cat(views).mean(dim=0))


@torch.no_grad()
@pytest.mark.parametrize("short", [0, 48, 200])
@pytest.mark.parametrize(
    "options", [{}, {"window": 32}, {"flip": True}, {"window": 40, "scales": (0.75, 1.5)}]
)
def test_label_map_is_the_most_probable_class(
    model: nn.Module, short: int, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if a strip has only two rows."""
    image = photo(61, 83)
    how = Inference(min_size=short, max_size=400, **options)
    expected = probabilities(model, image, how)
    monkeypatch.setattr("rmt.segmentation.chunked_resize.STRIP", 2 * 4 * 83)
    torch.testing.assert_close(probabilities(model, image, how), expected)
    assert label_map(model, image, how).equal(expected.argmax(dim=0).byte())


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=2, max_size=4))
@settings(deadline=None)
def test_strips_are_the_rows_of_the_resized_map(sizes: list[tuple[int, int]]) -> None:
    maps = torch.randn(3, *sizes[0], dtype=torch.float64)
    whole = maps[None]
    for size in sizes[1:]:
        whole = F.interpolate(whole, size, mode="bilinear", align_corners=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rmt.segmentation.chunked_resize.STRIP", 3 * 2 * sizes[-1][1])
        parts = list(strips(maps, sizes[1:]))
    assert [i for rows, _ in parts for i in range(rows.start, rows.stop)] == [*range(sizes[-1][0])]
    joined = torch.cat([part for _, part in parts], dim=1)
    torch.testing.assert_close(joined, whole[0], rtol=1e-12, atol=1e-12)


def test_logits_at_the_heads_size(model: nn.Module) -> None:
    images = torch.randn(1, 3, 41, 30)
    with torch.no_grad():
        coarse = model(images, full_size=False)
        assert coarse.shape == (1, 4, 11, 8)
        torch.testing.assert_close(resize(coarse, (41, 30)), model(images))


def test_release_test_size() -> None:
    """Short side 512 unless the long one would exceed 2048."""
    assert resize_photo(photo(300, 451), Inference()).shape == (3, 512, 770)
    assert resize_photo(photo(30, 451), Inference()).shape == (3, 136, 2048)
    assert resize_photo(photo(30, 45), Inference(min_size=0)).shape == (3, 30, 45)


def test_a_window_without_a_stride_moves_by_two_thirds() -> None:
    """341 pixels for the usual 512."""
    assert Inference(window=512).step == 341
    assert Inference(window=512, stride=300).step == 300
    assert Inference(window=1).step == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": -64}, r"inference\.window is -64; it must be at least 0"),
        ({"window": 64, "stride": 65}, "stride is 65 and inference.window is 64"),
        ({"stride": 65}, "stride is 65 and inference.window is 0"),
        ({"scales": ()}, "at least one"),
        ({"scales": (1.0, 0.0)}, r"inference\.scales is 0\.0; it must be greater than 0"),
        ({"min_size": 512, "max_size": 256}, "min_size is 512 and inference.max_size is 256"),
    ],
)
def test_mistakes_in_options(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Inference(**options)
