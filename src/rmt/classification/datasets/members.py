"""Files in tar files, each at its place.

A tar file is a row of plain files, each behind a header. The headers are gone through once; from
then on an image is read by its place, in any order and by any process. Readers of a stream
(webdataset's, timm's ``ReaderWds``) spare that pass, but shuffle within a window, cannot resume at
an exact sample, and evaluate on several processes with some images twice.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from rmt.classification.samples import Packed
from rmt.data.folders import is_hidden
from rmt.files import check_file


@dataclass(frozen=True, slots=True)
class Member(Packed):
    """A file in a tar file.

    The tar file is opened for each reading: beside decoding that costs nothing, and no open file
    is shared by processes or counted against their limit.

    Attributes:
        start: of the content, in bytes from the beginning of the tar file.
        length: of the content.
    """

    start: int
    length: int

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"

    def read(self) -> bytes:
        """Return the content; raises ``ValueError`` naming tar file and member."""
        try:
            with self.file.open("rb") as file:
                file.seek(self.start)
                content = file.read(self.length)
        except OSError as error:
            raise ValueError(f"{self} cannot be read: {error}") from error
        if len(content) < self.length:
            raise ValueError(f"{self} is cut off: {len(content)} of {self.length} bytes are there")
        return content


#: An image and the name or number of its class.
Labelled = tuple[Member, str]


def members(file: Path, ends: list[str] | None = None) -> Iterator[Member]:
    """Yield the files in a tar file, and in the tar files within it, but hidden ones.

    Args:
        file: the tar file.
        ends: takes what is wrong with the end: a file that was cut off between two members is like
            a whole one but for its last blocks.

    Raises:
        ValueError: if it is damaged, or compressed, so that nothing in it has a place.
    """
    check_file(file)
    try:
        with tarfile.open(file, "r:") as archive:
            yield from _walk(archive, file, [] if ends is None else ends)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{file} is not a whole, uncompressed tar file: {error}") from error


def holds_keys(file: Path) -> bool:
    """Return whether a tar file looks like a shard of webdataset: with classes beside images."""
    suffixes = {PurePosixPath(member.name).suffix for member in islice(members(file), 20)}
    return not suffixes.isdisjoint({".cls", ".json"})


def _walk(
    archive: tarfile.TarFile,
    file: Path,
    ends: list[str],
    *,
    inside: PurePosixPath = PurePosixPath(),  # noqa: B008 - it cannot be changed
    base: int = 0,
) -> Iterator[Member]:
    for info in archive:
        path = inside / info.name
        # A name that climbs names nothing of ours, as members are read in place.
        if not info.isfile() or any(is_hidden(part) for part in path.parts if part != ".."):
            continue
        start = base + info.offset_data
        if path.suffix == ".tar":
            with tarfile.open(fileobj=archive.extractfile(info), mode="r:") as inner:
                yield from _walk(inner, file, ends, inside=path.with_suffix(""), base=start)
        else:
            yield Member(file, str(path), start, info.size)
    if fault := _faulty_end(archive.fileobj, archive.offset):
        ends.append(f"{file}: {inside} {fault}" if inside.name else f"{file} {fault}")


def _faulty_end(file: Any, at: int) -> str:
    """Return what is wrong behind the last member, where a block of zeros must be, or nothing."""
    file.seek(at)
    mark, rest = file.read(tarfile.BLOCKSIZE), file.read(tarfile.RECORDSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        return "has no end mark: it was cut off, or its writer was stopped"
    if mark.strip(b"\0"):
        return f"is damaged at byte {at:,}: what follows is not read"
    if rest.strip(b"\0"):
        return "goes on behind its end mark, which is not read: was it joined with cat?"
    return ""
