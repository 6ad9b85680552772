"""Random numbers as a function of a few integers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*numbers: int) -> int:
    """Return one 63-bit seed made of several numbers, such that neighbours differ wholly."""
    words = np.random.SeedSequence([n % 2**32 for n in numbers]).generate_state(2)
    return int(words[0]) << 31 | int(words[1]) >> 1


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Draw from python's, numpy's and torch's CPU generators as seeded; then put them back."""
    seed = derive_seed(*numbers)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        # Not torch.manual_seed: it goes through every device for each sample.
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def seed_all(seed: int) -> None:
    """Seed the global generators of python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
