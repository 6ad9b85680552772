"""Decoded samples in memory: equal, safe from what is done to them, and within the limit."""

import numpy as np
import pytest
from PIL import Image

from rmt.data.cache import Cached


class Read:
    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, index: int) -> tuple:
        self.asked.append(index)
        if index == 3:
            raise ValueError("file 3 is damaged")
        pixels = np.full((8, 8, 3), index, np.uint8)
        return Image.fromarray(pixels), {"boxes": np.array([index, 2.0])}, index


def test_a_sample_is_read_once_and_its_copies_are_apart() -> None:
    read = Read()
    cached = Cached(read, 1e6)
    for _ in range(3):
        image, target, label = cached(5)
        assert (image.mode, image.size, label) == ("RGB", (8, 8), 5)
        assert (np.asarray(image) == 5).all()
        assert target["boxes"].tolist() == [5, 2]
        image.paste((1, 2, 3), (0, 0, 8, 8))
        target["boxes"] *= 0
    assert read.asked == [5]


def test_what_does_not_fit_is_read_again() -> None:
    read = Read()
    cached = Cached(read, 1e6)
    cached(0)
    cached = Cached(read, 2.5 * cached.size)
    read.asked.clear()
    for index in (0, 1, 2, 0, 1, 2, 4):
        assert cached(index)[2] == index
    assert read.asked == [0, 1, 2, 2, 4]
    assert cached.size <= cached.limit


def test_errors_are_not_kept() -> None:
    read = Read()
    cached = Cached(read, 1e6)
    for _ in range(2):
        with pytest.raises(ValueError, match="file 3 is damaged"):
            cached(3)
    assert read.asked == [3, 3]
