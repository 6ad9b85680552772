"""The libraries of exports: imported when they are needed, with the line that installs them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Say which extra of this package a library is in that cannot be imported.

    Raises:
        ValueError: instead of ``ImportError``.
    """
    try:
        yield
    except ImportError as error:
        raise ValueError(
            f"{error.name or 'a library'} is missing: pip install 'rmt-vision[{extra}]' ({error})"
        ) from error


def import_openvino() -> Any:
    """Return OpenVINO, without its telemetry.

    When it is imported, and NNCF too, it sends usage data from processes that it forks, unless
    ``openvino_telemetry`` is missing: then it takes a stub of its own. So that package is made to
    be missing in this process, unless someone has imported it before.

    Raises:
        ValueError: if it is not installed.
    """
    absent: Any = None
    sys.modules.setdefault("openvino_telemetry", absent)
    with needs("openvino"):
        import openvino
    return openvino
