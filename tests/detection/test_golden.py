"""Detectors equal the authors' code in float64: maps, heads, detections, losses and gradients."""

import zlib

import numpy as np
import pytest
import torch
from skimage import data
from torch import Tensor, nn

from golden_detection import (
    TOLERANCE_OF_TARGETS,
    Case,
    assert_close,
    assert_tensor,
    golden_batch,
    golden_pair,
    golden_target,
    load_case,
)
from rmt.detection.roi import levels_of, roi_features
from rmt.detection.transform import Batch, Transform


@pytest.fixture(scope="module", params=["retinanet_t", "maskrcnn_t", "casrcnn_s"])
def case(request: pytest.FixtureRequest) -> Case:
    return load_case(request.param)


# Tests of one head only.
retinanet = pytest.mark.parametrize("case", ["retinanet_t"], indirect=True)
mask_rcnn = pytest.mark.parametrize("case", ["maskrcnn_t"], indirect=True)
rcnn = pytest.mark.parametrize("case", ["maskrcnn_t", "casrcnn_s"], indirect=True)
one_stage_or_two = pytest.mark.parametrize("case", ["retinanet_t", "maskrcnn_t"], indirect=True)
two_images = pytest.mark.parametrize(
    "case", ["retinanet_t", pytest.param("maskrcnn_t", marks=pytest.mark.slow)], indirect=True
)
cascade = pytest.mark.parametrize("case", ["casrcnn_s"], indirect=True)


@pytest.fixture(scope="module")
def batch() -> Batch:
    return golden_batch()


@pytest.fixture(scope="module")
@torch.no_grad()
def maps(case: Case, batch: Batch) -> list[Tensor]:
    return case.model.maps(batch)


@torch.no_grad()
def test_backbone_and_pyramid(case: Case, batch: Batch, maps: list[Tensor]) -> None:
    for i, map_ in enumerate(case.model.backbone(batch.pixels)):
        case.assert_equal(f"backbone.{i}", map_)
    for i, map_ in enumerate(maps):
        case.assert_equal(f"fpn.{i}", map_)


@retinanet
@torch.no_grad()
def test_dense_head(case: Case, maps: list[Tensor]) -> None:
    logits, deltas = case.model.head(maps)
    for i in range(5):
        case.assert_equal(f"cls.{i}", logits[i])
        case.assert_equal(f"reg.{i}", deltas[i])


@rcnn
@torch.no_grad()
def test_proposals(case: Case, batch: Batch, maps: list[Tensor]) -> None:
    logits, deltas = case.model.rpn(maps)
    for i in range(5):
        case.assert_equal(f"rpn_cls.{i}", logits[i])
        case.assert_equal(f"rpn_reg.{i}", deltas[i])
    ((boxes, scores),) = case.model.rpn.proposals(logits, deltas, batch.sizes, training=False)
    case.assert_equal("proposals", torch.cat([boxes, scores[:, None]], dim=1))


@rcnn
@torch.no_grad()
def test_heads_on_given_regions(case: Case, batch: Batch, maps: list[Tensor]) -> None:
    model, rois = case.model, torch.from_numpy(case.arrays["fixed.rois"])
    assert torch.equal(levels_of(rois), torch.from_numpy(case.arrays["fixed.levels"]))
    case.assert_equal("fixed.roi_feats7", roi_features(maps, rois, 7))
    case.assert_equal("fixed.roi_feats14", roi_features(maps, rois, 14))
    for i, stage in enumerate(model.stages):
        logits, deltas = model.box_scores(model.box_heads[i], maps, rois)
        best = logits[:, :-1].argmax(dim=1)
        case.assert_equal(f"fixed.cls_score.{i}", logits)
        case.assert_equal(f"fixed.bbox_pred.{i}", deltas.flatten(1))
        assert torch.equal(best, torch.from_numpy(case.arrays[f"fixed.argmax.{i}"]))
        case.assert_equal(f"fixed.refined.{i}", model.refine(rois, best, deltas, batch, stage))
        case.assert_equal(
            f"fixed.mask_logits.{i}", model.mask_heads[i](roi_features(maps, rois, 14))
        )


@torch.no_grad()
def assert_detections(case: Case, maps: list[Tensor], batch: Batch) -> None:
    (found,) = case.model.detect(maps, batch)
    boxes = torch.cat([found["boxes"], found["scores"][:, None]], dim=1)
    case.assert_equal("det.boxes", boxes)
    assert torch.equal(found["labels"], torch.from_numpy(case.arrays["det.labels"]))
    if case.model.has_masks:
        areas = found["masks"].flatten(1).sum(dim=1)
        assert areas.tolist() == case.facts["f64"]["mask_areas"]


@one_stage_or_two
def test_detections(case: Case, batch: Batch, maps: list[Tensor]) -> None:
    assert_detections(case, maps, batch)


@pytest.mark.slow
@cascade
def test_detections_of_the_cascade(case: Case, batch: Batch, maps: list[Tensor]) -> None:
    assert_detections(case, maps, batch)
    proposals = torch.from_numpy(case.arrays["proposals"])[:, :4]
    with torch.no_grad():
        rois, logits, _ = case.model.cascade(maps, [proposals], batch)
    case.assert_equal("final.rois", rois)
    case.assert_equal("final.cls_score", logits)


@retinanet
@torch.no_grad()
def test_detections_at_test_scale(case: Case, batch: Batch, maps: list[Tensor]) -> None:
    unscaled = Batch(batch.pixels, batch.sizes, batch.padded, batch.sizes, torch.ones(1, 4))
    (found,) = case.model.detect(maps, unscaled)
    boxes = torch.cat([found["boxes"], found["scores"][:, None]], dim=1)
    case.assert_equal("det_unscaled.boxes", boxes)
    assert torch.equal(found["labels"], torch.from_numpy(case.arrays["det_unscaled.labels"]))


@retinanet
def test_from_the_picture_itself(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unscaled photo gives the golden detections: resizing and scaling back included."""
    monkeypatch.setattr(case.model, "transform", Transform(250, 1024))
    photo = torch.from_numpy(data.chelsea().copy()).permute(2, 0, 1) / 255
    with torch.no_grad():
        (found,) = case.model([photo])
    boxes = torch.cat([found["boxes"], found["scores"][:, None]], dim=1)
    case.assert_equal("det.boxes", boxes)


@mask_rcnn
def test_mask_outlines(case: Case, batch: Batch, maps: list[Tensor]) -> None:
    from pycocotools import mask

    boxes = torch.from_numpy(case.arrays["det.boxes"])[:, :4]
    labels = torch.from_numpy(case.arrays["det.labels"])
    with torch.no_grad():
        (found,) = case.model.add_masks(maps, [{"boxes": boxes, "labels": labels}], batch)
    ours = mask.encode(np.asfortranarray(found["masks"].permute(1, 2, 0).byte().numpy()))
    assert [rle["counts"].decode() for rle in ours] == case.facts["f64"]["mask_rle_counts"]


@two_images
def test_a_pair_of_images(case: Case) -> None:
    """Compare all detections but those without area, whose scores are equal and order is not."""
    pair, expected = golden_pair(), case.facts["batch"]
    with torch.no_grad():
        detections = case.model.detect(case.model.maps(pair), pair)
    for i, found in enumerate(detections):
        columns = [found["boxes"], found["scores"][:, None], found["labels"][:, None]]
        if case.model.has_masks:
            columns.append(found["masks"].flatten(1).sum(dim=1)[:, None])
        ours, theirs = torch.cat(columns, dim=1), torch.tensor(expected[f"image{i}"]).double()
        assert ours.shape == theirs.shape
        ours, theirs = (t[(t[:, 2] > t[:, 0]) & (t[:, 3] > t[:, 1])] for t in (ours, theirs))
        assert_tensor(ours, theirs.numpy(), 1e-7)


def assert_losses(ours: dict[str, Tensor], expected: dict) -> None:
    theirs = {name: np.sum(value) for name, value in expected.items() if "acc" not in name}
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert_close(value, theirs[name], TOLERANCE_OF_TARGETS if "bbox" in name else 1e-9)


@one_stage_or_two
@pytest.mark.parametrize("mode", ["norm_eval", pytest.param("norm_train", marks=pytest.mark.slow)])
def test_losses_and_gradients(case: Case, batch: Batch, mode: str) -> None:
    assert_training(case, batch, mode)


@pytest.mark.slow
@cascade
@pytest.mark.parametrize("mode", ["norm_eval", "norm_train"])
def test_losses_and_gradients_of_the_cascade(case: Case, batch: Batch, mode: str) -> None:
    assert_training(case, batch, mode)


def assert_training(case: Case, batch: Batch, mode: str) -> None:
    model, expected = case.model, case.facts["train"][f"{mode}_f64"]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(mode == "norm_train")
    losses = model.losses(model.maps(batch), batch, [golden_target()])
    assert_losses(losses, expected["losses"])
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    norms = torch.stack([p.grad.norm() for p in parameters.values() if p.grad is not None])
    assert_close(norms.norm(), expected["grad_norm_total"])
    for ours, theirs in case.sources.items():
        wanted = expected["grad_norm"].get(theirs)
        if wanted is not None and wanted > 1e-9:  # below: zero but for rounding, before a norm
            assert_close(parameters[ours].grad.norm(), wanted, 1e-8)
        samples = case.arrays.get(f"{mode}_f64.grad.{theirs}")
        if samples is not None:
            grad = parameters[ours].grad.reshape(-1)
            stride = 1 if grad.numel() <= 512 else (grad.numel() // 512) | 1
            assert_tensor(grad[::stride], samples)
    model.zero_grad()
    model.load_state_dict(state)  # batch norms have moved
    model.eval()


@two_images
@torch.no_grad()
def test_losses_of_a_pair(case: Case) -> None:
    pair = golden_pair()
    losses = case.model.losses(
        case.model.maps(pair), pair, [golden_target(), golden_target(corner=True)]
    )
    assert_losses(losses, case.facts["batch"]["train"]["losses"])


@rcnn
@torch.no_grad()
def test_losses_on_given_proposals(case: Case, batch: Batch, maps: list[Tensor]) -> None:
    proposals = given_proposals(golden_target()["boxes"])
    losses = case.model.stage_losses(maps, [proposals.double()], batch, [golden_target()])
    assert_losses(losses, case.facts["roi_train"]["losses"])


def given_proposals(objects: Tensor) -> Tensor:
    """Return 60 boxes around three objects and 40 anywhere, by the golden files' rule."""
    generator = torch.Generator().manual_seed(zlib.crc32(b"train_props"))
    size = (objects[:, 2:] - objects[:, :2]).repeat(1, 2)
    noise = torch.randn(3, 20, 4, generator=generator)
    near = (objects[:, None] + 0.08 * size[:, None] * noise).reshape(60, 4)
    u = torch.rand(40, 4, generator=generator)
    x, y = u[:, 0] * 376 * 0.8, u[:, 1] * 250 * 0.8
    far = torch.stack([x, y, x + 8 + u[:, 2] * 376 * 0.5, y + 8 + u[:, 3] * 250 * 0.5], dim=1)
    limits = torch.tensor([376.0, 250.0, 376.0, 250.0])
    return torch.cat([near, far]).clamp(min=0).minimum(limits)
