"""One model of each form for the contract's tests."""

import pytest
import torch

import rmt
from forms import FORMS, build


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(form: str) -> rmt.RMT:
    torch.manual_seed(1)
    return build(form)
