"""What every test relies on: few threads, no network, a fixed seed, checked annotations.

The environment is set before torch is imported, so that its thread pools and every subprocess
that a test starts obey it.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import random
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from limits import REFUSED, forbid_network

forbid_network()
# OpenVINO would send usage data from processes that it forks off this one, by the hundred. Without
# this package it takes a stub of its own.
sys.modules["openvino_telemetry"] = None
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def check_annotations() -> None:
    """Check the annotations of rmt, jaxtyping shapes included, on each call outside a graph.

    Dynamo cannot trace jaxtyping's `isinstance` checks. The wrapper asks its configuration on each
    call whether it is disabled, so the answer "while compiling or exporting" leaves the graph
    clean and every eager call checked.
    """
    import jaxtyping

    # beartype picks the list items that it checks by Python's global generator. From one of its own
    # it does not disturb what a test draws, such as augmentation, which must repeat exactly.
    drawn_globally, random.getrandbits = random.getrandbits, random.Random(0).getrandbits
    import beartype._check.code.codemain  # the two modules that keep the function
    import beartype._util.kind.integer.utilintget  # noqa: F401

    random.getrandbits = drawn_globally

    class Config(type(jaxtyping.config)):
        @property
        def jaxtyping_disable(self) -> bool:
            return self.__dict__["jaxtyping_disable"] or torch.compiler.is_compiling()

        @jaxtyping_disable.setter
        def jaxtyping_disable(self, value: bool) -> None:
            self.__dict__["jaxtyping_disable"] = value

    jaxtyping.config.__class__ = Config
    jaxtyping.install_import_hook(["rmt"], "checked.checked")


# Absent on a machine that only has what models and training need; the tests still run there.
if find_spec("jaxtyping") and find_spec("beartype"):
    check_annotations()


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start each test from the same random state, whatever ran before it in the same worker."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state is what the libraries under test draw from
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    """Fail a test that tries to connect to another machine, even if the error is swallowed."""
    REFUSED.clear()
    yield
    assert not REFUSED, f"connections were attempted: {REFUSED}"


@pytest.fixture(autouse=True)
def signal_stack() -> Iterator[None]:
    """Undo what OpenVINO does to the handling of signals, which ends other tests."""
    from rmt.deployment.signal_stack import keep_signal_stack

    with keep_signal_stack():
        yield


@pytest.fixture
def unchecked_annotations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let arguments of a wrong type reach rmt's own checks, to test what those say."""
    if find_spec("jaxtyping"):
        import jaxtyping

        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
