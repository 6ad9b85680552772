"""Four maps of any body, their norms, and the pyramid on top."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import rmt
from rmt.modeling.necks import FPN, STRIDES, Backbone
from rmt.variants import VARIANTS

DEPTHS = {"depths": (1, 1, 1, 1)}
HIERARCHICAL = [name for name, variant in VARIANTS.items() if variant.reductions == STRIDES]


@torch.no_grad()
@pytest.mark.parametrize("name", HIERARCHICAL)
def test_maps_of_every_variant(name: str) -> None:
    backbone = Backbone(name, **DEPTHS).eval()
    assert backbone.channels == VARIANTS[name].dims
    for height, width in ((64, 96), (33, 65), (1, 40)):
        maps = backbone(torch.randn(2, 3, height, width))
        assert [tuple(m.shape) for m in maps] == [
            (2, dim, -(-height // stride), -(-width // stride))
            for dim, stride in zip(backbone.channels, STRIDES, strict=True)
        ]


@torch.no_grad()
def test_norms_of_the_release() -> None:
    """A LayerNorm of eps 1e-5 on each map (the body's own have 1e-6), and no head."""
    backbone = Backbone("rmt_nano", **DEPTHS).eval()
    assert [norm.eps for norm in backbone.norms] == [1e-5] * 4
    assert not [key for key in backbone.state_dict() if ".head" in key]
    classifier = rmt.create_model("rmt_nano", **DEPTHS).eval()
    body = {k: v for k, v in classifier.state_dict().items() if not k.startswith("head")}
    backbone.body.load_state_dict(body)
    x = torch.randn(1, 3, 50, 70)
    plain = classifier.forward_intermediates(x, intermediates_only=True)
    for ours, raw in zip(backbone(x), plain, strict=True):
        expected = F.layer_norm(raw.permute(0, 2, 3, 1), raw.shape[1:2], eps=1e-5)
        assert torch.allclose(ours, expected.permute(0, 3, 1, 2), atol=1e-6)


def test_every_parameter_learns() -> None:
    backbone = Backbone("rmt_nano", in_chans=1, drop_path_rate=0.0, **DEPTHS).eval()
    weights = [torch.randn(1, c, 1, 1) for c in backbone.channels]
    maps = backbone(torch.randn(2, 1, 64, 96))
    sum((m * w).square().sum() for m, w in zip(maps, weights, strict=True)).backward()
    assert all(p.grad is not None and p.grad.any() for p in backbone.parameters())


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (64, 128, 256, 512)),
        ("convnext_atto", (40, 80, 160, 320)),
        ("pvt_v2_b0", (32, 64, 160, 256)),
        ("swin_tiny_patch4_window7_224", (96, 192, 384, 768)),
    ],
)
def test_other_bodies(name: str, channels: tuple[int, ...]) -> None:
    backbone = Backbone(name).eval()
    assert backbone.channels == channels
    assert not list(backbone.norms)
    for height, width in ((64, 96), (65, 97), (1, 1)):
        maps = backbone(torch.randn(1, 3, height, width))
        assert [tuple(m.shape[1:]) for m in maps] == [
            (dim, -(-height // stride), -(-width // stride))
            for dim, stride in zip(channels, STRIDES, strict=True)
        ]


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"), [("resnet18", {}), ("swin_tiny_patch4_window7_224", {"img_size": 64})]
)
def test_other_bodies_give_timm_s_maps(name: str, options: dict) -> None:
    backbone = Backbone(name, **options).eval()
    plain = timm.create_model(name, features_only=True, **options).eval()
    plain.load_state_dict(backbone.body.state_dict())
    x = torch.randn(1, 3, 64, 64)
    swin = "swin" in name
    expected = [m.permute(0, 3, 1, 2) if swin else m for m in plain(x)][-4:]
    assert all(a.equal(b) for a, b in zip(backbone(x), expected, strict=True))


@torch.no_grad()
def test_a_body_of_one_size() -> None:
    backbone = Backbone("coat_lite_tiny", img_size=64).eval()
    assert len(backbone(torch.randn(1, 3, 40, 64))) == 4
    with pytest.raises(ValueError, match=r"coat_lite_tiny failed on images of \(3, 96, 64\): .*64"):
        backbone(torch.randn(1, 3, 65, 64))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rmt_deit_s", r"rmt_deit_s has maps of stride \(16,\); dense heads need \(4, 8, 16, 32\)"),
        ("rmt_ss", "unknown backbone 'rmt_ss'.*did you mean 'rmt_s'"),
        ("rmt_deit_b.in1k", "unknown backbone"),
    ],
)
def test_mistakes_are_named(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Backbone(name)


@torch.no_grad()
def test_pyramid_is_laterals_top_down_sums_and_outputs() -> None:
    sizes = ((17, 13), (9, 7), (5, 4))  # no powers of two of each other
    maps = [torch.randn(2, dim, *size) for dim, size in zip((4, 6, 8), sizes, strict=True)]
    fpn = FPN((4, 6, 8), 16)
    assert all(not conv.bias.any() for conv in (*fpn.lateral, *fpn.output))
    outputs = fpn(maps)
    top = fpn.lateral[2](maps[2])
    middle = fpn.lateral[1](maps[1]) + F.interpolate(top, size=sizes[1], mode="nearest")
    finest = fpn.lateral[0](maps[0]) + F.interpolate(middle, size=sizes[0], mode="nearest")
    for ours, conv, expected in zip(outputs, fpn.output, (finest, middle, top), strict=True):
        assert ours.equal(conv(expected))
    assert all(isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3) for conv in fpn.output)


@torch.no_grad()
def test_checkpointing_and_copies() -> None:
    backbone = Backbone("rmt_nano", **DEPTHS).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = backbone(x)
    twin = copy.deepcopy(backbone)
    twin.body.set_grad_checkpointing()
    with torch.enable_grad():
        maps = twin(x)
    assert all(a.equal(b) for a, b in zip(maps, expected, strict=True))
