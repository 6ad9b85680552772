"""Manhattan attention inside a network that is not RMT: a small U-Net that removes noise.

`rmt.ManhattanAttention` keeps the shape of a channels-last map, so it can replace any block that
does. The U-Net is trained on crops of one photo and evaluated on another one. It needs scikit-image
for the photos, and well under a minute on one CPU core:

    python examples/unet_with_manhattan_attention.py
"""

import argparse

import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor, nn

import rmt

NOISE = 0.15  # standard deviation, for grey levels from 0 to 1
SIDE = 64  # of a training crop
BATCH = 8


class AttentionBlock(nn.Module):
    """x + attention(norm(x)) on a map (B, C, H, W), as in a transformer block."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = rmt.ManhattanAttention(dim, num_heads=dim // 16)

    def forward(self, x: Tensor) -> Tensor:
        channels_last = self.norm(x.permute(0, 2, 3, 1))  # (B, H, W, C)
        return x + self.attention(channels_last).permute(0, 3, 1, 2)


def convolutions(dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(dim, out_dim, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(out_dim, out_dim, 3, padding=1),
        nn.GELU(),
    )


class UNet(nn.Module):
    """Three levels, with attention on the two coarser ones; it predicts and subtracts the noise."""

    def __init__(self, dims: tuple[int, int, int] = (16, 32, 64)) -> None:
        super().__init__()
        fine, middle, coarse = dims
        self.enter = convolutions(3, fine)
        self.down1 = nn.Sequential(convolutions(fine, middle), AttentionBlock(middle))
        self.down2 = nn.Sequential(convolutions(middle, coarse), AttentionBlock(coarse))
        self.up1 = nn.Sequential(convolutions(coarse + middle, middle), AttentionBlock(middle))
        self.up2 = convolutions(middle + fine, fine)
        self.leave = nn.Conv2d(fine, 3, 1)
        nn.init.zeros_(self.leave.weight)  # so that it starts as the identity
        nn.init.zeros_(self.leave.bias)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W), any H and W."""
        fine = self.enter(image)
        middle = self.down1(F.avg_pool2d(fine, 2, ceil_mode=True))
        coarse = self.down2(F.avg_pool2d(middle, 2, ceil_mode=True))
        x = self.up1(torch.cat([enlarge(coarse, middle), middle], dim=1))
        x = self.up2(torch.cat([enlarge(x, fine), fine], dim=1))
        return image - self.leave(x)


def enlarge(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:])


def photo(array) -> Tensor:
    return torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255  # (1, 3, H, W)


def crops(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return a batch of random crops, (BATCH, 3, SIDE, SIDE)."""
    height, width = image.shape[2:]
    tops = torch.randint(height - SIDE, (BATCH,), generator=generator).tolist()
    lefts = torch.randint(width - SIDE, (BATCH,), generator=generator).tolist()
    return torch.cat(
        [image[:, :, y : y + SIDE, x : x + SIDE] for y, x in zip(tops, lefts, strict=True)]
    )


def psnr(image: Tensor, truth: Tensor) -> float:
    return -10 * F.mse_loss(image, truth).log10().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120)
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    train, test = photo(data.astronaut()), photo(data.chelsea())
    model = UNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for step in range(1, steps + 1):
        clean = crops(train, generator)
        loss = F.mse_loss(model(clean + NOISE * torch.randn_like(clean)), clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 20 == 0:
            print(f"step {step:4}  loss {sum(losses[-20:]) / 20:.5f}")

    noisy = test + NOISE * torch.randn_like(test)
    with torch.no_grad():
        restored = model(noisy)
    print(
        f"another photo: {psnr(noisy, test):.1f} dB noisy, {psnr(restored, test):.1f} dB restored"
    )


if __name__ == "__main__":
    main()
