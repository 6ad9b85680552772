"""Files: written whole or not at all, and the SHA-256 of files and data sets.

A digest says that two numbers were measured on the same things.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


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


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` on a neighbour of ``path``, then move it over ``path`` in one step.

    The file gets the permissions of any new file (those that the umask leaves), whatever ``write``
    gave it.

    Args:
        path: of the file; its folder is made if absent.
        write: writes the content to the path it is given, where an empty file is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.touch()
        permissions = stat.S_IMODE(temporary.stat().st_mode)
        write(temporary)
        temporary.chmod(permissions)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def for_people(content: Any) -> Any:
    """Return plain values with numbers as people read them: six digits, counts without decimals.

    Args:
        content: of a JSON file that nothing is computed from, such as metrics.
    """
    if isinstance(content, Mapping):
        return {
            key: int(value)
            if isinstance(value, float) and str(key).split("/")[-1] == "images"
            else for_people(value)
            for key, value in content.items()
        }
    if isinstance(content, list | tuple):
        return [for_people(item) for item in content]
    return float(f"{content:.6g}") if isinstance(content, float) else content


def write_json(path: Path, content: Any) -> None:
    """Write plain values as readable JSON; a half-written file never stays."""
    write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2)))
