"""The attention that is drawn is the attention that the model computes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rmt
from rmt.ops.geometry import log_decay_rates
from rmt.tools.explain import (
    attention_map,
    decay_map,
    draw_decay,
    explain,
    model_attention,
    rmt_body,
)

HEIGHT, WIDTH, DIM, HEADS = 5, 7, 24, 3


def attention(**options) -> rmt.ManhattanAttention:
    torch.manual_seed(2)
    module = rmt.ManhattanAttention(DIM, HEADS, **options).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module.eval()


@torch.no_grad()
@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("decay", [False, True])
def test_weights_are_those_of_the_kernel(decomposed: bool, decay: bool) -> None:
    """Applied to the values, the weights give the result of `manhattan_attention`, per token."""
    module = attention(decomposed=decomposed, decay=decay)
    x = torch.randn(1, HEIGHT, WIDTH, DIM, dtype=torch.float64)
    q, k = module.queries_and_keys(x, module.tables(x))
    v = module.heads(module.v(x))
    expected = rmt.manhattan_attention(q, k, v, module.log_decay, decomposed=decomposed)[0]
    for y in range(HEIGHT):
        for x_at in range(WIDTH):
            weights = attention_map(module, x, y, x_at)
            assert weights.shape == (HEADS, HEIGHT, WIDTH)
            assert torch.allclose(weights.sum((1, 2)), torch.ones(HEADS, dtype=torch.float64))
            out = torch.einsum("nhw,hwnd->nd", weights, v[0])
            assert torch.allclose(out, expected[y, x_at], atol=1e-12)


def test_decay() -> None:
    module = attention(decay_max=6.0)
    maps = decay_map(module, HEIGHT, WIDTH, 1, 4)
    assert maps.shape == (HEADS, HEIGHT, WIDTH)
    gamma = torch.tensor(log_decay_rates(HEADS, 6.0)).exp()
    for y in range(HEIGHT):
        for x in range(WIDTH):
            assert torch.allclose(maps[:, y, x], gamma ** (abs(y - 1) + abs(x - 4)), atol=1e-6)
    assert maps[:, 1, 4].tolist() == [1.0] * HEADS


@pytest.mark.parametrize("at", [(5, 0), (0, 7), (-1, 0)])
def test_outside(at: tuple[int, int]) -> None:
    module = attention()
    with pytest.raises(ValueError, match=r"token \(y=.*\) lies outside the map of 5x7"):
        decay_map(module, HEIGHT, WIDTH, *at)
    with pytest.raises(ValueError, match="lies outside"):
        attention_map(module, torch.zeros(1, HEIGHT, WIDTH, DIM, dtype=torch.float64), *at)


def test_no_decay() -> None:
    with pytest.raises(ValueError, match="this attention has no decay"):
        decay_map(attention(decay=False), HEIGHT, WIDTH, 0, 0)


@pytest.fixture(scope="module")
def model() -> rmt.RMT:
    torch.manual_seed(0)
    return rmt.create_model("rmt_nano", 3)


def test_every_stage_of_a_model(model: rmt.RMT) -> None:
    model.train()
    pixels = torch.randn(3, 96, 64)
    maps = model_attention(model, pixels, (0.0, 1.0))
    assert [tuple(m.shape) for m in maps.values()] == [
        (2, 24, 16),
        (2, 12, 8),
        (3, 6, 4),
        (4, 3, 2),
    ]
    assert list(maps) == ["stage 1", "stage 2", "stage 3", "stage 4"]
    assert all(torch.allclose(m.sum((1, 2)), torch.ones(len(m)), atol=1e-5) for m in maps.values())
    assert model.training
    assert not any(block.attn._forward_pre_hooks for s in model.stages for block in s.blocks)
    again = model_attention(model, pixels, (0.0, 1.0))
    assert all(maps[name].equal(again[name]) for name in maps)


def test_the_position_is_a_fraction_of_the_image(model: rmt.RMT) -> None:
    """The last stage's map of a position is that of the token there."""
    model.eval()
    pixels, seen = torch.randn(3, 96, 64), []
    attn = model.stages[-1].blocks[-1].attn
    handle = attn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(pixels[None])
        handle.remove()
        expected = attention_map(attn, seen[0], 2, 0)
    assert model_attention(model, pixels, (0.9, 0.3))["stage 4"].equal(expected)


@pytest.mark.parametrize("at", [(1.1, 0.5), (0.5, -0.1)])
def test_a_position_outside_the_image(model: rmt.RMT, at: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"at is .*between 0 and 1"):
        model_attention(model, torch.zeros(3, 32, 32), at)


def test_detectors_and_segmenters(tmp_path: Path) -> None:
    segmenter = rmt.create_segmenter("semantic_fpn", backbone="rmt_nano", num_classes=3)
    assert rmt_body(segmenter) is segmenter.backbone.body
    assert len(model_attention(segmenter, torch.randn(3, 64, 64), (0.5, 0.5))) == 4
    assert draw_decay(segmenter, tmp_path / "decay.png").stat().st_size


def test_pictures(model: rmt.RMT, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    image = Image.linear_gradient("L").resize((80, 50))
    drawn = explain(image, tmp_path / "model", tmp_path / "new" / "out", at=(0.2, 0.8))
    for path in drawn.values():
        with Image.open(path) as image:
            assert min(image.size) > 200


def test_a_model_without_decay(tmp_path: Path) -> None:
    rmt.create_model("rmt_nano", 3, decay=False).save_pretrained(tmp_path / "model")
    image = np.zeros((64, 48, 3), np.uint8)
    assert set(explain(image, tmp_path / "model", tmp_path)) == {"attention"}


def test_one_channel(tmp_path: Path) -> None:
    grey = rmt.create_model("rmt_nano", 3, in_chans=1)
    assert len(rmt.Predictor(grey)(np.zeros((64, 48, 3), np.uint8))["top"]) == 3
    grey.save_pretrained(tmp_path / "model")
    assert explain(np.zeros((64, 48), np.uint8), tmp_path / "model", tmp_path)
    with pytest.raises(ValueError, match="this model takes 4 channels"):
        rmt.Predictor(rmt.create_model("rmt_nano", 3, in_chans=4))
    with pytest.raises(ValueError, match="prediction needs pooled ones"):
        rmt.Predictor(rmt.create_model("rmt_nano", 3, global_pool=""))
