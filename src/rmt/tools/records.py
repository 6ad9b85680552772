"""JSON records written one by one, so that those written survive if the process is killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self


class RecordWriter:
    """A file of JSON records that is valid after each of them.

    A ``.jsonl`` file has one record per line. Any other is an array, whose closing bracket is
    written anew after each record.

    Args:
        path: of the file; None writes nothing. Its folder is made if absent.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file = None
        self._empty = True

    def __enter__(self) -> Self:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("wb", buffering=0)
            if not self._is_lines:
                self._file.write(b"[]\n")
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, record: dict[str, Any]) -> None:
        """Add a record.

        Raises:
            OSError: if the file cannot be written, as when the disk is full.
        """
        if self._file is None:
            return
        text = json.dumps(record, allow_nan=False)
        if self._is_lines:
            self._file.write(f"{text}\n".encode())
            return
        self._file.seek(-2 if self._empty else -3, 2)  # before "]\n" or "\n]\n"
        self._file.write(f"{'' if self._empty else ','}\n{text}\n]\n".encode())
        self._empty = False

    @property
    def _is_lines(self) -> bool:
        assert self.path is not None
        return self.path.suffix == ".jsonl"
