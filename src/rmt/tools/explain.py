"""What a model attends to: decay maps of its heads, and attention from one position."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from rmt.modeling.layers import ManhattanAttention
from rmt.modeling.pretrained import Pretrained
from rmt.modeling.rmt import RMT
from rmt.ops import MapTables
from rmt.ops.geometry import line_bias, map_bias
from rmt.task import get_task
from rmt.tools.predict import Picture, as_picture
from rmt.weights.load import load


def decay_map(attn: ManhattanAttention, height: int, width: int, y: int, x: int) -> Tensor:
    """Return γ^(|Δy| + |Δx|) of each head around a token: (N, H, W), 1 at the token.

    Raises:
        ValueError: if the token lies outside the map, or the attention has no decay.
    """
    _inside(height, width, y, x)
    if attn.log_decay is None:
        raise ValueError("this attention has no decay (variant field decay=False)")
    bias = map_bias(height, width, attn.log_decay, device=torch.device("cpu"), dtype=torch.float32)
    return bias[:, y * width + x].exp().reshape(-1, height, width)


def attention_map(attn: ManhattanAttention, features: Tensor, y: int, x: int) -> Tensor:
    """Return how much a token attends to every other: (N, H, W), summing to 1 in each head.

    For decomposed attention this is the product of the column's weights with each row's weights
    (eq. 6): the token attends to its column, and each token of that column to its row.

    Args:
        attn: the attention module.
        features: its input, (1, H, W, C).
        y: row of the token.
        x: column of the token.

    Raises:
        ValueError: if the token lies outside the map.
    """
    _, height, width, _ = features.shape
    _inside(height, width, y, x)
    q, k = attn.queries_and_keys(features, attn.tables(features))
    q, k = q[0], k[0]  # (H, W, N, D)
    table = {"device": q.device, "dtype": q.dtype}
    decay = attn.log_decay or (0.0,) * attn.num_heads
    if not attn.decomposed:
        bias = map_bias(height, width, decay, **table)[:, y * width + x]
        scores = torch.einsum("nd,hwnd->nhw", q[y, x], k).flatten(1) + bias
        return scores.softmax(-1).unflatten(-1, (height, width))
    rows = torch.einsum("hnd,hwnd->nhw", q[:, x], k) + line_bias(width, decay, **table)[:, None, x]
    column = torch.einsum("nd,hnd->nh", q[y, x], k[:, x]) + line_bias(height, decay, **table)[:, y]
    return column.softmax(-1)[..., None] * rows.softmax(-1)


def model_attention(
    model: Pretrained, pixels: Tensor, at: tuple[float, float]
) -> dict[str, Tensor]:
    """Return the attention of each stage's last block from one position in the image.

    Args:
        model: an :class:`rmt.RMT`, or a detector or segmenter with one as its backbone.
        pixels: (3, H, W), normalised as the model expects.
        at: (y, x) as fractions of height and width, 0..1.

    Returns:
        Stage name -> (N, h, w), at the resolution of the stage.

    Raises:
        ValueError: if ``at`` lies outside the image.
    """
    if not all(0 <= fraction <= 1 for fraction in at):
        raise ValueError(
            f"at is {at}; give (y, x) as fractions of height and width, between 0 and 1"
        )
    body = rmt_body(model)
    maps: dict[str, Tensor] = {}

    def keep(name: str) -> Callable:
        def hook(attn: ManhattanAttention, inputs: tuple[Tensor, MapTables]) -> None:
            _, height, width, _ = inputs[0].shape
            y, x = (min(int(s * n), n - 1) for s, n in zip(at, (height, width), strict=True))
            maps[name] = attention_map(attn, inputs[0], y, x)

        return hook

    handles = [
        attn.register_forward_pre_hook(keep(f"stage {i + 1}"))
        for i, attn in enumerate(last_attentions(body))
    ]
    was_training = body.training
    try:
        with torch.no_grad():
            body.eval().forward_features(pixels[None].to(next(body.parameters())))
    finally:
        body.train(was_training)
        for handle in handles:
            handle.remove()
    return maps


def explain(
    image: Picture, checkpoint: str | Path, out: str | Path, *, at: tuple[float, float] = (0.5, 0.5)
) -> dict[str, Path]:
    """Draw to folder ``out`` the attention from one position of an image, and the decay if any.

    Raises:
        ValueError: if ``at`` lies outside the image, or the model has no RMT backbone.
    """
    model = load(checkpoint)
    pixels, shown = get_task(model.task).prediction().pixels(model, as_picture(image))
    maps = model_attention(model, pixels, at)
    drawn = {"attention": draw_attention(shown, maps, at, Path(out) / "attention.png")}
    if rmt_body(model).variant.decay:
        drawn["decay"] = draw_decay(model, Path(out) / "decay.png")
    return drawn


def rmt_body(model: Pretrained) -> RMT:
    """Return the RMT within a model of any task.

    Raises:
        ValueError: if its backbone is another network.
    """
    body = model.body
    if not isinstance(body, RMT):
        raise ValueError(
            f"the backbone is a {type(body).__name__}; only an RMT has Manhattan attention"
        )
    return body


def draw_attention(
    image: Image.Image, maps: dict[str, Tensor], at: tuple[float, float], path: str | Path
) -> Path:
    """Draw the mean over heads of each stage's attention over the image, to a PNG."""
    figure = Figure(figsize=(3 * (len(maps) + 1), 3.3), layout="constrained")
    axes = figure.subplots(1, len(maps) + 1)
    axes[0].imshow(image)
    axes[0].plot(at[1] * image.width, at[0] * image.height, "x", color="red", markersize=10)
    axes[0].set_title("from the cross")
    for axis, (name, weights) in zip(axes[1:], maps.items(), strict=True):
        mean = weights.mean(0)
        heat = torch.nn.functional.interpolate(
            mean[None, None].float(), size=(image.height, image.width), mode="bilinear"
        )[0, 0]
        axis.imshow(image.convert("L"), cmap="gray")
        heat = (heat / heat.max().clamp_min(1e-12)).numpy()
        axis.imshow(heat, cmap="inferno", alpha=0.6, vmin=0, vmax=1)
        axis.set_title(f"{name}: {mean.shape[0]}x{mean.shape[1]}")
    for axis in axes:
        axis.set_axis_off()
    return _save(figure, path)


def draw_decay(model: Pretrained, path: str | Path, *, size: int = 15) -> Path:
    """Draw γ^|Δ| of every head of every stage around the centre of a map, to a PNG."""
    heads = last_attentions(rmt_body(model))
    rates = [attn.log_decay or () for attn in heads]
    columns = max(attn.num_heads for attn in heads)
    figure = Figure(figsize=(1.1 * columns + 1, 1.3 * len(heads) + 0.5), layout="constrained")
    axes = figure.subplots(len(heads), columns, squeeze=False)
    for row, (attn, log_decay) in enumerate(zip(heads, rates, strict=True)):
        maps = decay_map(attn, size, size, size // 2, size // 2)
        for column, axis in enumerate(axes[row]):
            axis.set_axis_off()
            if column < attn.num_heads:
                axis.imshow(maps[column].numpy(), vmin=0, vmax=1, cmap="viridis")
                gamma = math.exp(log_decay[column])
                axis.set_title(f"γ={gamma:.3f}", fontsize=7)
    figure.suptitle(f"decay with Manhattan distance, {size}x{size} tokens; one row per stage")
    return _save(figure, path)


def last_attentions(body: RMT) -> list[ManhattanAttention]:
    """Return the attention of each stage's last block."""
    return [
        [module for module in stage.modules() if isinstance(module, ManhattanAttention)][-1]
        for stage in body.stages
    ]


def _inside(height: int, width: int, y: int, x: int) -> None:
    if not (0 <= y < height and 0 <= x < width):
        raise ValueError(f"token (y={y}, x={x}) lies outside the map of {height}x{width}")


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
