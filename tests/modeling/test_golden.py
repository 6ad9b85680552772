"""The classification models equal the authors' code in float64, outputs and gradients."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

import rmt
from golden_rule import GOLDEN, every_name_is_found_without_its_key, golden_state, release_keys
from rmt.weights.release import CLASSIFIER, rename

TOLERANCE = 1e-9
CASES = json.loads((GOLDEN / "classification.json").read_text())
TAGS = ("rmt_t", "rmt_s", "rmt_b", "rmt_l", "rmt_s_tl", "rmt_b_tl", "rmt_l_tl")


def relative(ours: float, theirs: float) -> float:
    return abs(ours - theirs) / abs(theirs)


def build(tag: str) -> rmt.RMT:
    return rmt.create_model(tag.removesuffix("_tl"), token_labels=tag.endswith("_tl"))


@pytest.fixture(scope="module", params=CASES)
def golden(request: pytest.FixtureRequest) -> tuple[str, rmt.RMT]:
    """Return a tag and its model with golden weights, in float64."""
    renamed = rename(golden_state(release_keys(request.param)), CLASSIFIER)
    assert not renamed.unknown
    model = build(request.param)
    model.load_state_dict(renamed.tensors)
    return request.param, model.double().eval()


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "classification.npz") as file:
        return dict(file)


def image(case: str) -> Tensor:
    height, width = map(int, case.split("x"))
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randn(2, 3, height, width, generator=generator).double()


def assert_close(ours: Tensor, theirs: np.ndarray) -> None:
    expected = torch.from_numpy(theirs)
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= TOLERANCE * expected.abs().max()


@torch.no_grad()
def test_outputs(golden: tuple[str, rmt.RMT], arrays: dict[str, np.ndarray]) -> None:
    tag, model = golden
    for case, expected in CASES[tag].items():
        last, maps = model.forward_intermediates(image(case), output_fmt="NHWC")
        for ours, stage in zip(maps, expected["stages"], strict=True):
            assert list(ours.shape) == stage["shape_bhwc"]
            assert relative(ours.norm().item(), stage["l2"]) <= TOLERANCE
            assert relative(ours.sum().item(), stage["sum"]) <= TOLERANCE
            assert relative(ours.abs().sum().item(), stage["abssum"]) <= TOLERANCE
        logits = model(image(case))
        assert_close(logits, arrays[f"{tag}/{case}/logits"])
        assert relative(logits.norm().item(), expected["logits_l2"]) <= TOLERANCE
        assert relative(logits.std().item(), expected["logits_std"]) <= TOLERANCE
        if "aux" in expected:
            dense = model.dense_logits(maps[-1]).flatten(1, 2)
            assert list(dense.shape) == expected["aux"]["shape"]
            assert relative(dense.norm().item(), expected["aux"]["l2"]) <= TOLERANCE
            assert relative(dense.sum().item(), expected["aux"]["sum"]) <= TOLERANCE
            assert_close(model.forward_head(last), arrays[f"{tag}/{case}/cls"])


@pytest.mark.parametrize("golden", ["rmt_t", "rmt_b"], indirect=True)
def test_gradients(golden: tuple[str, rmt.RMT]) -> None:
    tag, model = golden
    expected = CASES[tag]["64x96"]["grad_l2"]
    model(image("64x96")).square().mean().backward()
    norms = {key: torch.tensor(norm, dtype=torch.float64) for key, norm in expected.items()}
    theirs = rename(norms, CLASSIFIER).tensors
    assert theirs
    parameters = dict(model.named_parameters())
    for key, norm in theirs.items():
        assert relative(parameters[key].grad.norm().item(), norm.item()) <= TOLERANCE, key


@pytest.mark.parametrize("tag", TAGS)
def test_names_and_shapes(tag: str) -> None:
    """Every name of the release's model has exactly one counterpart here, of the same size."""
    with torch.device("meta"):
        ours = {key: value.numel() for key, value in build(tag).state_dict().items()}
        state = {key: torch.empty(shape) for key, shape in release_keys(tag).items()}
    renamed = rename(state, CLASSIFIER)
    assert not renamed.unknown
    every_name_is_found_without_its_key(renamed)
    assert {key: value.numel() for key, value in renamed.tensors.items()} == ours
