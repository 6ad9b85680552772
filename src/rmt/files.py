"""SHA-256 of files and data sets: what says that two numbers were measured on the same things."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def digest_of_file(path: Path) -> str:
    """Return the digest of a file's bytes, as ``sha256sum`` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_samples(samples: Iterable[object]) -> str:
    """Return the digest of plain values, one sample after another."""
    found = hashlib.sha256()
    for sample in samples:
        found.update(f"{sample!r}\n".encode())
    return found.hexdigest()


def identity(path: Path) -> tuple[str, int]:
    """Return what tells a file from others wherever its folder lies: name and size in bytes.

    The name includes the last folder's; a file that is not there has size -1.
    """
    size = path.stat().st_size if path.is_file() else -1
    return f"{path.parent.name}/{path.name}", size


def write_atomically(path: Path, write) -> None:
    """Call ``write`` on a neighbour of ``path``, then move it over ``path`` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
