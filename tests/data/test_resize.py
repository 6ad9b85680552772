"""Resizing equals OpenCV's, byte by byte."""

import hashlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage import data

from golden_rule import GOLDEN
from rmt.data.resize import keep_ratio, resize_bytes

CASES = json.loads((GOLDEN / "preprocess.json").read_text())


@pytest.mark.parametrize("name", ["image", "shrunk_more", "det_official", "seg_official"])
def test_bytes_of_the_photo(name: str) -> None:
    photo = torch.from_numpy(data.chelsea().copy()).permute(2, 0, 1)
    case = CASES[name]
    long, short = case["img_scale"]
    size = keep_ratio(300, 451, min_size=short, max_size=long)
    assert list(size) == case["resized_hw"]
    resized = resize_bytes(photo, *size).permute(1, 2, 0).contiguous().numpy()
    assert hashlib.sha256(resized.tobytes()).hexdigest() == case["sha256_rgb_bytes"]


def test_same_size_is_the_image() -> None:
    image = torch.randint(256, (3, 5, 7)).byte()
    assert resize_bytes(image, 5, 7) is image


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 255))
def test_a_flat_image_stays_flat(height: int, width: int, level: int) -> None:
    image = torch.full((1, 9, 13), level).byte()
    assert (resize_bytes(image, height, width) == level).all()


def test_sizes_round_half_up() -> None:
    assert keep_ratio(480, 640, min_size=800, max_size=1333) == (800, 1067)
    assert keep_ratio(1, 5000, min_size=800, max_size=1333) == (1, 1333)
