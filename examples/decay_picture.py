"""Draw the picture in README.md: how far four heads of RMT-S see from one token of a photo.

The decay is part of the architecture and not learned, so the picture needs no weights:

    python examples/decay_picture.py docs/images/decay.png
"""

import argparse

import torch
from matplotlib.figure import Figure
from skimage.data import chelsea

import rmt
from rmt.tools.explain import decay_map

ROWS, COLUMNS, AT = 38, 57, (14, 30)  # a stride-8 map of the photo; between the cat's eyes


def main(path: str) -> None:
    photo = torch.from_numpy(chelsea()).permute(2, 0, 1)[None].float()
    photo = torch.nn.functional.interpolate(photo, size=(ROWS * 8, COLUMNS * 8), mode="bilinear")
    photo = photo[0].permute(1, 2, 0) / 255
    attn = rmt.create_model("rmt_s").stages[2].blocks[0].attn
    maps = decay_map(attn, ROWS, COLUMNS, *AT)
    heads = (0, 2, 4, 7)
    figure = Figure(figsize=(15, 2.2), layout="constrained")
    axes = figure.subplots(1, len(heads) + 1)
    axes[0].imshow(photo)
    axes[0].plot(AT[1] * 8 + 4, AT[0] * 8 + 4, "x", color="red", markersize=9)
    axes[0].set_title("one token of the image")
    for axis, head in zip(axes[1:], heads, strict=True):
        weight = maps[head].repeat_interleave(8, 0).repeat_interleave(8, 1)
        axis.imshow(photo * weight[..., None])
        gamma = torch.tensor(attn.log_decay[head]).exp()
        axis.set_title(f"head {head}: γ = {gamma:.3f}, γ^(|Δy|+|Δx|)")
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", help="PNG to write")
    main(parser.parse_args().path)
