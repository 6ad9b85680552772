"""Box functions against the authors' own, and properties of any box."""

import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from golden_rule import GOLDEN
from rmt.detection.boxes import clip, decode, encode, giou_loss, multiclass_nms, nms_by_class

STDS = {
    "rpn": (1, 1, 1, 1),
    "s0": (0.1, 0.1, 0.2, 0.2),
    "s1": (0.05, 0.05, 0.1, 0.1),
    "s2": (0.033, 0.033, 0.067, 0.067),
}


@pytest.fixture(scope="module")
def micro() -> dict[str, Tensor]:
    with np.load(GOLDEN / "detection" / "micro.npz") as file:
        return {key: torch.from_numpy(value) for key, value in file.items()}


@pytest.mark.parametrize("name", STDS)
def test_coding(micro: dict[str, Tensor], name: str) -> None:
    # Logarithm and exponential differ in the last bit of float32 between CPUs.
    boxes, deltas = micro["coder.boxes"], micro["coder.deltas"].view(64, 2, 4)
    decoded = decode(boxes[:, None], deltas, STDS[name])
    torch.testing.assert_close(
        decoded.flatten(1), micro[f"coder.decode_noclip.{name}"], rtol=1e-6, atol=1e-4
    )
    clipped = clip(decoded, torch.tensor([240, 361])).flatten(1)
    torch.testing.assert_close(
        clipped, micro[f"coder.decode_clip240x361.{name}"], rtol=1e-6, atol=1e-4
    )
    encoded = encode(boxes, boxes.flip(0), STDS[name])
    torch.testing.assert_close(encoded, micro[f"coder.encode.{name}"], rtol=1e-6, atol=4e-6)


box = st.tuples(*[st.floats(0, 1000, width=32)] * 2, *[st.floats(1, 500, width=32)] * 2)


@given(st.lists(st.tuples(box, box), min_size=1, max_size=20))
@settings(deadline=None)
def test_a_perfect_prediction_decodes_to_itself(pairs: list) -> None:
    table = torch.tensor(pairs)
    boxes, targets = (torch.cat([t[:, :2], t[:, :2] + t[:, 2:]], 1) for t in table.unbind(1))
    ratio = (table[:, 1, 2:] / table[:, 0, 2:]).log().abs().amax(dim=1)
    near = ratio < 4.13  # beyond the clamp of the coder
    for stds in STDS.values():
        decoded = decode(boxes.double(), encode(boxes, targets, stds).double(), stds)
        assert (decoded - targets)[near].abs().max().item() < 2e-2 if near.any() else True


def test_suppression(micro: dict[str, Tensor]) -> None:
    boxes, scores, labels = (micro[f"nms.{name}"] for name in ("boxes", "scores", "labels"))
    keep = nms_by_class(boxes, scores, torch.zeros_like(labels), iou=0.5)
    assert torch.equal(keep, micro["nms.keep_iou0.5"])
    keep = nms_by_class(boxes, scores, labels % 5, iou=0.5)
    assert torch.equal(keep, micro["nms.batched_mod5_split10000.keep"])


def test_suppression_class_by_class(
    micro: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rmt.detection.boxes._ONE_CALL", 100)
    keep = nms_by_class(micro["nms.boxes"], micro["nms.scores"], micro["nms.labels"] % 5, iou=0.5)
    assert torch.equal(keep, micro["nms.batched_mod5_split100.keep"])


def test_suppression_over_classes(micro: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(zlib.crc32(b"mc"))
    scores = (torch.randn(200, 81, generator=generator) * 3).softmax(dim=1)
    boxes = micro["mcnms.rois"][:, None] + torch.randn(200, 80, 4, generator=generator) * 3
    boxes, scores, labels = multiclass_nms(
        boxes, micro["mcnms.scores"][:, :-1], threshold=0.05, iou=0.5, limit=100
    )
    assert torch.equal(torch.cat([boxes, scores[:, None]], dim=1), micro["mcnms.dets"])
    assert torch.equal(labels, micro["mcnms.labels"])


def test_nothing_above_the_threshold() -> None:
    boxes, scores, labels = multiclass_nms(
        torch.rand(5, 4), torch.zeros(5, 3), threshold=0.05, iou=0.5, limit=100
    )
    assert boxes.shape == (0, 4)
    assert len(scores) == len(labels) == 0


def test_focal_loss(micro: dict[str, Tensor]) -> None:
    logits, labels = micro["loss.logits"], micro["loss.labels"]
    known = F.one_hot(labels, 81)[:, :80].to(logits)
    focal = sigmoid_focal_loss(logits, known) * micro["loss.weights"][:, None]
    assert abs(focal.sum() / 7 - micro["loss.focal"]) < 1e-12


@given(st.integers(0, 2**31))
@settings(deadline=None, max_examples=20)
def test_giou_of_equal_boxes_is_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(6, 2, generator=generator, dtype=torch.float64) * 50
    boxes = torch.cat([low, low + 1 + torch.rand(6, 2, generator=generator) * 50], dim=1)
    assert giou_loss(boxes, boxes).abs().max() < 1e-12
    far = boxes + 1000
    assert (giou_loss(boxes, far) > 1).all()
