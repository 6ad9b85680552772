"""Where a network runs."""

from __future__ import annotations

import torch


def find_device(name: str) -> torch.device:
    """Return a device by name; ``auto`` is the accelerator if there is one, else the CPU.

    Raises:
        ValueError: for a name that torch does not know.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        return found or torch.device("cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used: {reason}") from error
