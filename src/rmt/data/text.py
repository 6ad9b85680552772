"""Text files as UTF-8, whatever the system's own encoding, with or without a byte-order mark."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

# The longer marks first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Surrogates but those that stand for bytes.
_HALVES = re.compile(r"[\ud800-\udc7f\udd00-\udfff]")


def read_text(path: Path) -> str:
    """Return the content of a text file in UTF-8, or in UTF-16 or -32 as Windows tools write it.

    A byte-order mark is not part of the content.

    Raises:
        ValueError: if the file is in another encoding, or none to read at all.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a folder, a pipe or a device; expected a text file")
    return decode_text(path.read_bytes(), name=str(path))


def decode_text(content: bytes, *, name: str) -> str:
    """Return bytes as :func:`read_text` does; ``name`` is for messages."""
    mark, encoding = next(
        ((mark, encoding) for mark, encoding in _MARKS if content.startswith(mark)),
        (b"", _without_mark(content)),
    )
    try:
        return content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not in UTF-8 ({error}); save it as UTF-8") from error


def unescaped(text: str) -> str:
    """Return text with the bytes that an ASCII locale has escaped put back.

    What still is not text, such as half a character of JSON, becomes a question mark in a box.
    """
    whole = _HALVES.sub("\ufffd", text)
    return whole.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank, without surrounding blanks."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def _without_mark(content: bytes) -> str:
    """Return the encoding of text without a mark: in UTF-16 every other byte of letters is 0."""
    if content[1:2] == b"\0":
        return "utf-16-le"
    return "utf-16-be" if content[:1] == b"\0" else "utf-8"
