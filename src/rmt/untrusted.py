"""Values from files of strangers: read within limits, and every check names its place."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml

from rmt.messages import did_you_mean, printable

# Far above what any description needs (ImageNet-21k has 21,841 class names).
_MOST_BYTES = 16 * 2**20
# YAML is read a hundred times more slowly than JSON.
_MOST_YAML_BYTES = 2**20
_MOST_VALUES = 100_000
_MOST_LEVELS = 32
_MOST_BITS = 64
# torch lets a pickle make a bytearray of any length, of which the file needs to name the length.
_BYTEARRAY = b"\nbytearray\n"


@dataclass(frozen=True)
class Field:
    """A plain value of a file, and where it stands.

    Attributes:
        value: as it was read.
        file: name of the file, and of the part of it that holds the values.
        path: keys that lead to the value, with dots between them; empty for the whole.
        hint: a sentence that says what to do, at the end of each message.
    """

    value: Any
    file: str
    path: str = ""
    hint: str = ""

    @classmethod
    def of(cls, content: object, file: str, *, hint: str = "") -> Field:
        """Return the whole content, made sure that it consists of plain values.

        Raises:
            ValueError: if there is something else than mappings with text as keys, lists, text,
                finite numbers, true, false and null; or too much of it, or too deep.
        """
        whole = cls(content, file, hint=hint)
        waiting, count = [(whole, 0)], 0
        while waiting:
            field, level = waiting.pop()
            count += 1
            if level > _MOST_LEVELS or count > _MOST_VALUES:
                raise whole.error(
                    f"holds more than {_MOST_VALUES:,} values"
                    if count > _MOST_VALUES
                    else f"is nested more than {_MOST_LEVELS} levels deep"
                )
            waiting += [(part, level + 1) for part in field._parts()]
        return whole

    def _parts(self) -> list[Field]:
        """Return the values within this one, once its own kind is checked."""
        value = self.value
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    kind = type(key).__name__
                    raise self.error(f"has a key of type {kind}; expected text as keys")
            return [self._part(key, item) for key, item in value.items()]
        if isinstance(value, list | tuple):
            return [self._part(str(i), item) for i, item in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            raise self.error(f"is {value}; expected a finite number")
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise self.error(f"is a whole number of {value.bit_length()} bits")
        if value is not None and not isinstance(value, str | int | float):
            raise self.error(f"is a {type(value).__name__}; expected a plain value")
        return []

    def _part(self, key: str, value: Any) -> Field:
        path = f"{self.path}.{printable(key)}" if self.path else printable(key)
        return Field(value, self.file, path, self.hint)

    def error(self, reason: str) -> ValueError:
        """Return the error that says what is wrong with this value."""
        words = f"{self.file}: {self.path} {reason}" if self.path else f"{self.file} {reason}"
        return ValueError(f"{words}. {self.hint}" if self.hint else words)

    def _expected(self, what: str) -> ValueError:
        return self.error(f"is {_shown(self.value)}; expected {what}")

    def __getitem__(self, key: str) -> Field:
        entries = self.mapping()
        if key not in entries:
            missing = did_you_mean(key, map(printable, entries))
            raise self.error(f"has no entry {key!r}{missing}")
        return self._part(key, entries[key])

    def get(self, key: str, default: Any) -> Field:
        """Return an entry, or ``default`` in its place if it is missing or null."""
        value = self.mapping().get(key)
        return self._part(key, default if value is None else value)

    def mapping(self) -> dict[str, Any]:
        """Return the value, which must be a mapping."""
        if not isinstance(self.value, Mapping):
            raise self._expected("a mapping of names to values")
        return dict(self.value)

    def items(self) -> list[Field]:
        """Return the parts of the value, which must be a list."""
        if not isinstance(self.value, list | tuple):
            raise self._expected("a list")
        return [self._part(str(i), item) for i, item in enumerate(self.value)]

    def text(self) -> str:
        """Return the value, which must be text."""
        if not isinstance(self.value, str):
            raise self._expected("text")
        return self.value

    def flag(self) -> bool:
        """Return the value, which must be true or false."""
        if not isinstance(self.value, bool):
            raise self._expected("true or false")
        return self.value

    def one_of(self, *choices: str) -> str:
        """Return the value, which must be one of some words."""
        if self.value not in choices:
            raise self._expected(" or ".join(map(repr, choices)))
        return self.value

    def number(self) -> float:
        """Return the value, which must be a number."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise self._expected("a number")
        return self.value

    def whole(self, *, least: int, most: int = 2**53) -> int:
        """Return the value, which must be a whole number from ``least`` to ``most``."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            upper = "" if most == 2**53 else f" to {most:,}"
            raise self._expected(f"a whole number from {least}{upper}")
        return value


def read_json_file(path: Path, *, most: int = _MOST_BYTES) -> Any:
    """Return what a JSON file says; see :func:`read_json`."""
    with path.open("rb") as file:
        return read_json(file.read(most + 1), printable(path, limit=1000), most=most)


def read_json(text: str | bytes, file: str, *, most: int = _MOST_BYTES) -> Any:
    """Return what JSON says.

    Args:
        text: as read; bytes are UTF-8, -16 or -32, with a byte order mark or without.
        file: its name, for messages.
        most: length that is read.

    Raises:
        ValueError: if it is not JSON, or too long or too deep.
    """
    if len(text) > most:
        raise ValueError(f"{file} is longer than {most:,} characters, the most that is read")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else printable(error)
        raise ValueError(f"{file} is not JSON ({reason})") from error


def read_yaml(text: str, file: str) -> Any:
    """Return what YAML says.

    Args:
        text: as read.
        file: its name, for messages.

    Raises:
        ValueError: if it is not YAML, too long or too deep, or would unfold by its anchors to far
            more than it is.
    """
    if len(text) > _MOST_YAML_BYTES:
        most = f"{_MOST_YAML_BYTES:,} characters, the most that is read"
        raise ValueError(f"{file} is longer than {most}")
    with _named(file):
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    if node is None:
        return None
    _check_unfolded(node, file)
    with _named(file):
        return loader.construct_document(node)


@contextmanager
def _named(file: str) -> Iterator[None]:
    """Say in one kind of error what is wrong with YAML."""
    try:
        yield
    except MemoryError:
        raise  # the machine's fault, not the file's
    except RecursionError as error:
        raise ValueError(f"{file} is not YAML (nested too deep)") from error
    except Exception as error:  # a value that does not fit its tag raises anything
        raise ValueError(f"{file} is not YAML: {printable(error, keep=chr(10))}") from error


def _check_unfolded(whole: yaml.Node, file: str) -> None:
    """Raise for more values than a description needs; one with an anchor counts at each place."""
    waiting, count = [(whole, 0)], 0
    while waiting:
        node, level = waiting.pop()
        count += 1
        if level > _MOST_LEVELS:
            raise ValueError(f"{file} is nested more than {_MOST_LEVELS} levels deep")
        if count > _MOST_VALUES:
            raise ValueError(f"{file} holds more than {_MOST_VALUES:,} values")
        if isinstance(node, yaml.MappingNode):
            waiting += [(part, level + 1) for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(part, level + 1) for part in node.value]


def read_pickle(path: Path, *, allow: tuple[type, ...] = (), what: str = "a checkpoint") -> Any:
    """Return what ``torch.save`` wrote, without running any code from the file.

    Args:
        path: of the file.
        what: it should be, for messages.
        allow: classes besides tensors and plain values whose objects may be in it.

    Raises:
        ValueError: if the file is damaged, would unpack to far more than its own size, or would
            need more than is allowed.
    """
    _check_size(path, what)
    try:
        with torch.serialization.safe_globals(list(allow)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, MemoryError):
        raise  # the machine's fault, not the file's
    except Exception as error:  # random bytes can raise anything in the unpickler
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, UnpicklingError) and wanted:
            raise ValueError(
                f"{path} was not read: it asks to run {printable(wanted[1])!r} on loading, and "
                "only tensors and plain values are accepted. If you trust its author, read it with "
                "torch.load(..., weights_only=False) and save its state dict alone"
            ) from error
        raise ValueError(
            f"{path} is damaged or not {what} ({type(error).__name__}): fetch or write it again"
        ) from error


def _check_size(path: Path, what: str) -> None:
    """Raise ``ValueError`` for a file that would unpack to far more than its own size."""
    size = path.stat().st_size
    if not size:
        raise ValueError(f"{path} is damaged or not {what}: it is empty")
    try:
        parts = _parts_of_zip(path)
    except OSError:
        raise  # the machine's fault, not the file's
    except Exception as error:  # random bytes can raise anything in the reader of directories
        raise ValueError(f"{path} is damaged or not {what} (its directory)") from error
    unpacked = sum(part.file_size for part in parts)
    if unpacked > size or any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError(
            f"{path} would unpack from {size:,} to {unpacked:,} bytes, which torch.save does not "
            "do. Unpack and save it again if you trust its author"
        )
    if _contains(path, _BYTEARRAY):
        raise ValueError(
            f"{path} was not read: it holds a bytearray, and only tensors and plain values are "
            "accepted"
        )


def _parts_of_zip(path: Path) -> list[zipfile.ZipInfo]:
    """Return the directory of a zip file, nothing for another."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.infolist()


def _contains(path: Path, word: bytes) -> bool:
    """Return whether a file holds some bytes."""
    before = b""
    with path.open("rb") as file:
        while chunk := file.read(2**22):
            if word in before + chunk:
                return True
            before = chunk[-len(word) :]
    return False


def _shown(value: Any) -> str:
    """Return a value as a message shows it."""
    if isinstance(value, Mapping | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, str | int | float | None):
        return printable(repr(value), limit=60)
    return f"a {type(value).__name__}"
