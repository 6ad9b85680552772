"""Files: looked at before they are opened, written whole or not at all, and their SHA-256.

A digest says that two numbers were measured on the same things.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError


def check_file(path: Path, *, what: str = "file") -> None:
    """Raise unless a path is a file with content.

    Opening a pipe or a device would wait for ever.

    Args:
        path: of the file.
        what: it is, for messages.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is a folder, a pipe or a device, empty, or the system refuses it.
    """
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            os.scandir(path).close()  # a folder that cannot be read says so
            raise ValueError("it is a folder")
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is a pipe or a device")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no {what} {str(path)!r}") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path} cannot be read: {reason}") from error
    if found.st_size == 0:
        raise ValueError(f"{path} is empty (0 bytes)")


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


def digest_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the digest of a state dict: names, dtypes, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
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

    Raises:
        OSError: if the disk does not take it, in which case ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.touch()
        permissions = stat.S_IMODE(temporary.stat().st_mode)
        write(temporary)
        temporary.chmod(permissions)
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise _not_written(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield where to write a new file, its companions, or a folder; move them to ``path`` at last.

    All that stands beside the yielded path is moved, in alphabetical order. After an error, nothing
    of it stays.

    Args:
        path: of the file or folder, which must not be there; its parent is made if absent.

    Raises:
        ValueError: if something of the name is there already.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_free(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    aside.mkdir()
    try:
        yield aside / path.name
        made = sorted(aside.iterdir())
        for own in made:
            _check_free(path.with_name(own.name))
        for own in made:
            os.replace(own, path.with_name(own.name))
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _check_free(path: Path) -> None:
    if os.path.lexists(path):
        raise ValueError(f"{path} is there already: name another, or remove it first")


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
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_torch(path: Path, content: Any) -> None:
    """Write what ``torch.load`` reads; a half-written file never stays."""

    def write(temporary: Path) -> None:
        # Given a path, torch does not tell why the disk did not take it.
        with temporary.open("wb") as file:
            torch.save(content, file)

    write_atomically(path, write)


def _not_written(path: Path, error: Exception) -> OSError:
    """Return the error that names the file, which those of torch and safetensors do not."""
    cause = error if isinstance(error, OSError) else error.__context__
    if isinstance(cause, OSError) and cause.errno is not None:
        return OSError(cause.errno, cause.strerror, str(path))
    if number := re.search(r"\(os error (\d+)\)", str(error)):  # as Rust tells it
        return OSError(int(number[1]), os.strerror(int(number[1])), str(path))
    return OSError(f"{path} was not written: {error}")
