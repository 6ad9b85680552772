"""Files in tar files, each at its place, and an index of them beside the data.

A tar file is a row of plain files, each behind a header. The headers are gone through once; from
then on an image is read by its place, in any order and by any process. Readers of a stream
(webdataset's, timm's ``ReaderWds``) spare that pass, but shuffle within a window, cannot resume at
an exact sample, and evaluate on several processes with some images twice.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from rmt.classification.datasets.packed import Entry, files_by_split
from rmt.classification.samples import Packed
from rmt.data.findings import Findings
from rmt.data.folders import is_hidden
from rmt.data.splits import SPLITS, Split, sort_by_split
from rmt.files import write_atomically


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


def members(file: Path) -> Iterator[Member]:
    """Yield the files in a tar file, and in the tar files within it, but hidden ones.

    Raises:
        ValueError: if it is damaged, or compressed, so that nothing in it has a place.
    """
    try:
        with tarfile.open(file, "r:") as archive:
            yield from _walk(archive, file, inside=PurePosixPath(), base=0)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{file} is not a whole, uncompressed tar file: {error}") from error


def holds_keys(file: Path) -> bool:
    """Return whether a tar file looks like a shard of webdataset: with classes beside images."""
    suffixes = {PurePosixPath(member.name).suffix for member in islice(members(file), 20)}
    return not suffixes.isdisjoint({".cls", ".json"})


def _walk(
    archive: tarfile.TarFile, file: Path, *, inside: PurePosixPath, base: int
) -> Iterator[Member]:
    for info in archive:
        path = inside / info.name
        if not info.isfile() or any(map(is_hidden, path.parts)):
            continue
        start = base + info.offset_data
        if path.suffix == ".tar":
            with tarfile.open(fileobj=archive.extractfile(info), mode="r:") as inner:
                yield from _walk(inner, file, inside=path.with_suffix(""), base=start)
        else:
            yield Member(file, str(path), start, info.size)


def indexed(
    root: Path,
    entries: Callable[[Iterator[Member]], Iterator[Labelled | str]],
    findings: Findings,
) -> dict[Split, list[Entry]]:
    """Return the images of each split, from an index beside the data where it is up to date.

    Going through the headers of 140 GB takes a minute on a local disk, and far longer over a
    network. Where nothing may be written, it is done anew each time.

    Args:
        root: a tar file, or the folder of some.
        entries: picks the images of a tar file, with their classes, or says what is wrong.
        findings: names what is wrong.

    Raises:
        ValueError: for what is not a tar file, or holds other numbers than ``_info.json`` says.
    """
    home = root if root.is_dir() else root.parent
    splits, counts = _listed(home) if root.is_dir() else ({}, {})
    splits = splits or files_by_split(root, ".tar")
    index = home / f".rmt-{entries.__name__}.json"
    try:
        known = json.loads(index.read_bytes())
    except (OSError, ValueError):
        known = {}
    shards: dict[str, Any] = {}
    for file in (file for files in splits.values() for file in files):
        name, stat = str(file.relative_to(home)), file.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        if name not in known or known[name]["stamp"] != stamp:
            shards[name] = {"stamp": stamp} | _looked_through(entries(members(file)))
        else:
            shards[name] = known[name]
        for fault in shards[name].get("faults", ()):
            findings.fault("sample that makes no sense|samples that make no sense", fault)
        count = len(shards[name]["images"]) + len(shards[name].get("faults", ()))
        if count != counts.get(file, count):
            raise ValueError(f"{file} holds {count} images; _info.json says {counts[file]}")
    if shards != known:
        with suppress(OSError):
            text = json.dumps(shards)
            write_atomically(index, lambda path: path.write_text(text, encoding="utf-8"))

    def images(file: Path) -> Iterator[Entry]:
        for name, start, length, label in shards[str(file.relative_to(home))]["images"]:
            yield Member(file, name, start, length), label

    return {split: [e for file in files for e in images(file)] for split, files in splits.items()}


def _looked_through(found: Iterator[Labelled | str]) -> dict[str, Any]:
    rows, faults = [], []
    for each in found:
        if isinstance(each, str):
            faults.append(each)
        else:
            member, label = each
            rows.append((member.name, member.start, member.length, label))
    return {"images": rows} | ({"faults": faults} if faults else {})


def _listed(home: Path) -> tuple[dict[Split, list[Path]], dict[Path, int]]:
    """Return the shards of each split and the images in each, as ``_info.json`` lists them."""
    listing = home / "_info.json"
    if not listing.is_file():
        return {}, {}
    about, _ = sort_by_split(json.loads(listing.read_bytes()).get("splits", {}).items())
    splits: dict[Split, list[Path]] = {}
    counts: dict[Path, int] = {}
    for split in (each for each in SPLITS if each in about):
        files = [home / name for name in about[split]["filenames"]]
        if lost := [path for path in files if not path.is_file()]:
            raise ValueError(f"{listing} lists {len(lost)} files that are not there: {lost[0]}")
        if "shard_lengths" in about[split]:
            counts |= zip(files, about[split]["shard_lengths"], strict=True)
        splits[split] = files
    return splits, counts
