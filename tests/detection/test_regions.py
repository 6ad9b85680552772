"""RoIAlign, pasting and mask targets against the authors' own."""

import zlib

import numpy as np
import pytest
import torch
from torch import Tensor

from golden_detection import golden_target
from golden_rule import GOLDEN
from rmt.detection.masks import mask_targets, paste
from rmt.detection.roi import levels_of, roi_features, to_rois


@pytest.fixture(scope="module")
def micro() -> dict[str, Tensor]:
    with np.load(GOLDEN / "detection" / "micro.npz") as file:
        return {key: torch.from_numpy(value) for key, value in file.items()}


def test_regions(micro: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(zlib.crc32(b"roi"))
    maps = [torch.randn(1, 8, 240 // s + 1, 368 // s, generator=generator) for s in (4, 8, 16, 32)]
    rois = micro["roi.rois"]
    assert torch.equal(levels_of(rois), micro["roi.levels"])
    for size in (7, 14):
        features = roi_features(maps, rois, size)[:, :2]
        torch.testing.assert_close(features, micro[f"roi.align{size}"], rtol=0, atol=1e-6)


def test_pasting(micro: dict[str, Tensor]) -> None:
    masks = micro["paste.mask_logits_of_label"].sigmoid()
    scale = torch.tensor([361 / 451, 0.8, 361 / 451, 0.8])
    pasted = paste(masks, micro["paste.boxes_scaled"] / scale, (300, 451))
    assert torch.equal(pasted.flatten(1).sum(dim=1), micro["paste.areas"])
    packed = np.packbits(pasted.flatten(1).numpy(), axis=1)
    assert np.array_equal(packed, micro["paste.masks_packed"].numpy())


def test_pasting_nothing() -> None:
    assert paste(torch.zeros(0, 28, 28), torch.zeros(0, 4), (30, 40)).shape == (0, 30, 40)


def test_a_full_mask_fills_its_box() -> None:
    pasted = paste(torch.ones(1, 28, 28), torch.tensor([[3.0, 5, 13, 9]]), (20, 20))[0]
    expected = torch.zeros(20, 20, dtype=torch.bool)
    expected[5:9, 3:13] = True
    assert torch.equal(pasted, expected)


def test_a_box_beyond_the_image_leaves_what_is_inside() -> None:
    pasted = paste(torch.ones(1, 28, 28), torch.tensor([[-4.0, -4, 4, 40]]), (10, 10))[0]
    assert pasted[:, :4].all()
    assert not pasted[:, 4:].any()


def test_mask_targets(micro: dict[str, Tensor]) -> None:
    target = golden_target()["masks"]
    ours = mask_targets(target, micro["mask_target.props"], micro["mask_target.gt_inds"])
    assert torch.equal(ours.byte(), micro["mask_target.out"])


def test_table_of_regions() -> None:
    rois = to_rois([torch.ones(2, 4), torch.zeros(0, 4), torch.ones(1, 4)])
    assert rois[:, 0].tolist() == [0, 0, 2]
    assert to_rois([torch.zeros(0, 4)]).shape == (0, 5)
