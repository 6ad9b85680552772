"""The inference form computes the same function."""

import pytest
import torch
from timm.layers import LayerScale
from torch import nn

import rmt
from rmt.detection import create_detector
from rmt.modeling.fuse import fuse
from rmt.ops import tables
from rmt.segmentation import create_segmenter


def settled(model: nn.Module) -> nn.Module:
    """Set norms, biases and scales to values that folding must keep."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        if isinstance(module, LayerScale):
            module.gamma.data.normal_(0.5, 0.1, generator=generator)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layer_scale": (True, True, True, True)},
        {"token_labels": True},
        {"cpe": False, "lce": False, "mlp_conv": False},
        {"decay": False},
        {"stem": "patch", "downsample": "merge", "head_hidden": 0},
    ],
    ids=str,
)
def test_equal_to_the_trained_form(options: dict) -> None:
    model = settled(rmt.create_model("rmt_nano", 7, **options)).double()
    images = torch.randn(2, 3, 33, 65, dtype=torch.float64)
    fused = fuse(model)
    torch.testing.assert_close(fused(images), model(images), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        fused.forward_intermediates(images)[1], model.forward_intermediates(images)[1]
    )


@pytest.mark.parametrize("fused", [False, True])
def test_tables_are_built_once_per_stage(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a traced graph for all blocks of a stage; eager calls of one size share them."""
    options = {"depths": (2, 2, 3, 2), "full_attention": (False, False, False, True)}
    model = rmt.create_model("rmt_nano", 7, **options).eval()
    model = model.fuse() if fused else model
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        graph = torch.export.export(model, (images,)).graph
        called = [str(node.target) for node in graph.nodes]
        assert called.count("aten.cos.default") == called.count("aten.sin.default") == 4
        assert called.count("aten.abs.default") == 8  # distances along rows and along columns
        tables.clear()
        expected = model(images)
        monkeypatch.setattr(torch, "arange", lambda *_, **__: pytest.fail("a table is built again"))
        assert model(images).equal(expected)


def test_the_original_is_untouched_and_float32_stays_close() -> None:
    model = settled(rmt.create_model("rmt_nano", 7))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(2, 3, 64, 64)
    wanted = model.double()(images.double())
    model.float()
    got = model.fuse()(images)
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_fewer_operations_and_no_gradient() -> None:
    fused = fuse(rmt.create_model("rmt_nano", 7))
    assert not any(isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d) for m in fused.modules())
    assert not any(parameter.requires_grad for parameter in fused.parameters())


@pytest.mark.parametrize("head", ["semantic_fpn", "upernet"])
def test_segmenters(head: str) -> None:
    model = settled(create_segmenter(head, "rmt_nano", num_classes=5, channels=32)).double()
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    torch.testing.assert_close(model.fuse()(images), model(images), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "backbone", ["resnet18", "regnety_002", "mobilenetv4_conv_small", "cspdarknet53"]
)
def test_bodies_of_timm(backbone: str) -> None:
    """Their norms may include an activation, and their ``bn`` need not follow a ``conv``."""
    model = create_segmenter("semantic_fpn", backbone, num_classes=5, channels=32)
    model = settled(model).double()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    wanted = model(images)
    assert (model.fuse()(images) - wanted).abs().max() <= 1e-9 * wanted.abs().max()


def test_detector() -> None:
    model = settled(create_detector("retinanet", "rmt_nano", num_classes=5, min_size=64))
    model.double()
    images = [torch.rand(3, 64, 80, dtype=torch.float64)]
    (wanted,), (got,) = (m(images, score_threshold=0.0) for m in (model, model.fuse()))
    torch.testing.assert_close(got["boxes"], wanted["boxes"], rtol=1e-6, atol=1e-6)
    assert torch.equal(got["labels"], wanted["labels"])
