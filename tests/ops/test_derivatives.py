"""Derivatives beyond the gradient: forward mode and second order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import rmt


def loss(x: Tensor, backend: str) -> Tensor:
    return rmt.manhattan_attention(x, x, x, (-0.5, -0.2), backend=backend).square().sum()


def test_plain_backend_has_them() -> None:
    x, direction = torch.randn(2, 1, 2, 3, 2, 4, dtype=torch.float64).unbind()
    _, tangent = torch.func.jvp(lambda x: loss(x, "plain"), (x,), (direction,))
    gradient = torch.func.grad(loss)(x, "plain")
    assert torch.allclose(tangent, (gradient * direction).sum())
    hessian = torch.func.hessian(loss)(x, "plain").reshape(x.numel(), -1)
    assert torch.allclose(hessian, hessian.T)
    step = 1e-6 * direction
    change = torch.func.grad(loss)(x + step, "plain") - gradient
    assert torch.allclose(hessian @ step.flatten(), change.flatten(), rtol=1e-3, atol=1e-9)


def test_fused_kernel_refuses_them() -> None:
    x = torch.randn(1, 2, 3, 2, 4)
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(lambda x: loss(x, "sdpa"), (x,), (x,))
