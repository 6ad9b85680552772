"""Prediction in batches: order, shapes, a bounded look-ahead, and faults of single images."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import rmt
from rmt.data.images import decode_image
from rmt.tools.stream import predict_in_order


class Widths:
    """A predictor that returns the width, and keeps the batches that it was given."""

    def __init__(self, most: int = 1000) -> None:
        self.batches: list[list[int]] = []
        self.most = most

    def prepare(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image))

    def shape(self, pixels: Tensor) -> tuple[int, ...]:
        return tuple(pixels.shape)

    def predict(self, batch: Sequence[Tensor]) -> list[dict[str, Any]]:
        self.batches.append([pixels.shape[1] for pixels in batch])
        assert len(set(self.batches[-1])) == 1
        if len(batch) > self.most or batch[0].shape[1] == 13:
            raise RuntimeError("out of memory")
        return [{"width": pixels.shape[1]} for pixels in batch]


def read(width: int) -> Image.Image:
    if width < 0:
        raise ValueError(f"{width} is damaged")
    return Image.new("RGB", (width, 2))


def run(widths: Sequence[int], predictor: Widths, size: int) -> list[Any]:
    outcomes = list(predict_in_order(widths, read, predictor, batch_size=size))
    assert [outcome.item for outcome in outcomes] == list(widths)
    assert all(outcome.pixels is None for outcome in outcomes)
    return [own.result["width"] if own.result else str(own.error) for own in outcomes]


def test_images_of_one_shape_pass_together_and_keep_their_order() -> None:
    predictor = Widths()
    widths = [3, 5, 3, 5, 3, -1, 5, 3, 7]
    assert run(widths, predictor, 3) == [3, 5, 3, 5, 3, "-1 is damaged", 5, 3, 7]
    assert sorted(predictor.batches) == [[3], [3, 3, 3], [5, 5, 5], [7]]


def test_a_rare_shape_waits_for_a_few_batches_only() -> None:
    predictor = Widths()
    run([9] + [4] * 40, predictor, 4)
    assert predictor.batches.index([9]) == 3
    assert run([4] * 3, Widths(), 1) == [4] * 3


def test_a_batch_that_fails_is_predicted_one_by_one() -> None:
    predictor = Widths(most=1)
    assert run([3, 3, 13, 13, 3], predictor, 4) == [3, 3, "out of memory", "out of memory", 3]


def test_few_images_are_read_ahead() -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield 3

    stream = predict_in_order(endless(), read, Widths(), batch_size=4)
    for _ in range(100):
        next(stream)
    assert taken < 100 + 40
    stream.close()
    with pytest.raises(ValueError, match="batch_size is 0"):
        next(predict_in_order([3], read, Widths(), batch_size=0))


def test_a_batch_from_python(tmp_path: Path) -> None:
    predictor = rmt.Predictor(rmt.create_model("rmt_nano", 3), device="cpu")
    images = [np.full((20, side, 3), 9 * side, np.uint8) for side in (20, 24, 20)]
    found = predictor.predict_batch(images)
    for ours, image in zip(found, images, strict=True):
        for one, other in zip(ours["top"], predictor(image)["top"], strict=True):
            assert one == pytest.approx(other, abs=1e-5)
    assert predictor.predict_batch([]) == []
    with pytest.raises(FileNotFoundError, match="gone"):
        predictor.predict_batch([images[0], tmp_path / "gone.png"])


def test_decoding_in_threads_leaves_the_filters_of_warnings_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    Image.new("P", (8, 8)).save(path, transparency=0)
    before = list(warnings.filters)
    rmt.Predictor(rmt.create_model("rmt_nano", 3), device="cpu").predict_batch([path] * 40)
    assert decode_image(path, name="a").size == (8, 8)
    assert warnings.filters == before
