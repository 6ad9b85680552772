"""Linear layers of an RMT quantised by torchao."""

import copy

import pytest
import torch

import rmt
from forms import image


def quantized(network: rmt.RMT, config: str) -> rmt.RMT:
    import torchao.quantization

    network = copy.deepcopy(network)
    torchao.quantization.quantize_(network, getattr(torchao.quantization, config)())
    return network


def nbytes(network: rmt.RMT) -> int:
    parts = [getattr(t, "qdata", t) for t in network.state_dict().values()]
    return sum(part.nbytes for part in parts)


@pytest.fixture(scope="module")
def network() -> rmt.RMT:
    torch.manual_seed(0)
    model = rmt.create_model("rmt_nano", num_classes=7, depths=(1, 1, 1, 1)).eval()
    with torch.no_grad():
        model.head.fc.weight.normal_()
    return model.fuse()


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ("Int8WeightOnlyConfig", 0.03),
        ("Int8DynamicActivationInt8WeightConfig", 0.04),
        ("Float8WeightOnlyConfig", 0.12),
    ],
)
@torch.no_grad()
def test_outputs(network: rmt.RMT, config: str, most: float) -> None:
    """Close to those before, in half of the memory; what was saved is read again."""
    x = image()
    small, expected = quantized(network, config), network(x)
    out = small(x)
    assert (out - expected).abs().max() <= most * expected.abs().max()
    assert nbytes(small) < 0.55 * nbytes(network)
    again = copy.deepcopy(network)
    again.load_state_dict(small.state_dict(), assign=True)
    assert again(x).equal(out)


@pytest.mark.slow
@torch.no_grad()
def test_graph(network: rmt.RMT) -> None:
    small, x = quantized(network, "Int8WeightOnlyConfig"), image()
    program = torch.export.export(small, (x,))
    assert torch.allclose(program.module()(x), small(x), atol=1e-5)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("Int4WeightOnlyConfig", "mslk"),
        ("Float8DynamicActivationFloat8WeightConfig", "CUDA compute capability"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="they are for a GPU")
def test_what_the_cpu_lacks(network: rmt.RMT, config: str, reason: str) -> None:
    with pytest.raises((ImportError, AssertionError), match=reason):
        quantized(network, config)
