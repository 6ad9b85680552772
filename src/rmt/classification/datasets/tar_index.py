"""The images of tar files by split, from an index beside the data where it fits them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rmt.classification.datasets.members import Labelled, Member, members
from rmt.classification.datasets.packed import Entry, files_by_split
from rmt.data.findings import Findings
from rmt.data.named_files import Confines
from rmt.data.splits import SPLITS, Split, sort_by_split
from rmt.files import write_atomically
from rmt.untrusted import Field, read_json_file

#: What is written of a tar file: lists under these names.
_KEYS = ("stamp", "images", "faults", "ends")


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
    files = {str(file.relative_to(home)): file for own in splits.values() for file in own}
    index = home / f".rmt-{entries.__name__}.json"
    known = _read(index, files)
    shards: dict[str, Any] = {}
    for name, file in files.items():
        shard: Any = known.get(name)
        if not _fits(shard, file):
            shard = _looked_through(file, entries)
        shards[name] = shard
        for fault in shard["ends"]:
            findings.fault("tar file with a faulty end|tar files with a faulty end", fault)
        for fault in shard["faults"]:
            findings.fault("sample that makes no sense|samples that make no sense", fault)
        count = len(shard["images"]) + len(shard["faults"])
        if count != counts.get(file, count):
            raise ValueError(f"{file} holds {count} images; _info.json says {counts[file]}")
    if shards != known:
        with suppress(OSError):
            text = json.dumps(shards)
            write_atomically(index, lambda path: path.write_text(text, encoding="utf-8"))

    def images(file: Path) -> Iterator[Entry]:
        for name, start, length, label in shards[str(file.relative_to(home))]["images"]:
            yield Member(file, name, start, length), label

    return {split: [e for file in own for e in images(file)] for split, own in splits.items()}


def _looked_through(
    file: Path, entries: Callable[[Iterator[Member]], Iterator[Labelled | str]]
) -> dict[str, Any]:
    rows, faults, ends = [], [], []
    for each in entries(members(file, ends)):
        if isinstance(each, str):
            faults.append(each)
        else:
            member, label = each
            rows.append([member.name, member.start, member.length, label])
    return dict(zip(_KEYS, (_stamp(file), rows, faults, ends), strict=True))


def _stamp(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _read(index: Path, files: dict[str, Path]) -> dict[str, Any]:
    """Return what an index says; nothing if it is damaged, or longer than what it is about."""
    try:
        content = read_json_file(index, most=sum(file.stat().st_size for file in files.values()))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _fits(shard: Any, file: Path) -> bool:
    """Return whether an index was made of this very file, as far as a look at it tells.

    It may come with the data, from whoever made them.
    """
    if not isinstance(shard, dict) or tuple(shard) != _KEYS or shard["stamp"] != _stamp(file):
        return False
    rows, (size, _) = shard["images"], shard["stamp"]
    if not isinstance(rows, list) or not all(_is_row(row, size) for row in rows):
        return False
    for key in ("faults", "ends"):
        if not isinstance(shard[key], list) or not all(isinstance(own, str) for own in shard[key]):
            return False
    with file.open("rb") as archive:
        return all(_has_header(archive, row) for row in rows[:1] + rows[-1:])


def _is_row(row: Any, size: int) -> bool:
    if not isinstance(row, list) or [type(part) for part in row] != [str, int, int, str]:
        return False
    _, start, length, _ = row
    return start >= tarfile.BLOCKSIZE and length >= 0 and start + length <= size


def _has_header(archive: Any, row: list[Any]) -> bool:
    """Return whether the header of a member lies before its content."""
    _, start, length, _ = row
    archive.seek(start - tarfile.BLOCKSIZE)
    header = archive.read(tarfile.BLOCKSIZE)
    try:
        return tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape").size == length
    except tarfile.TarError:
        return False


def _listed(home: Path) -> tuple[dict[Split, list[Path]], dict[Path, int]]:
    """Return the shards of each split and the images in each, as ``_info.json`` lists them."""
    listing = home / "_info.json"
    if not listing.is_file():
        return {}, {}
    about = Field.of(read_json_file(listing), str(listing)).get("splits", {})
    named, _ = sort_by_split((name, about[name]) for name in about.mapping())
    confines = Confines(home)
    splits: dict[Split, list[Path]] = {}
    counts: dict[Path, int] = {}
    for split in (each for each in SPLITS if each in named):
        names = [name.text() for name in named[split]["filenames"].items()]
        files = [confines.join(home, name) for name in names]
        lost = [n for n, path in zip(names, files, strict=True) if not path or not path.is_file()]
        if lost:
            raise ValueError(f"{listing} lists {len(lost)} files that are not in {home}: {lost[0]}")
        splits[split] = [path for path in files if path]
        lengths = named[split].get("shard_lengths", []).items()
        if lengths and len(lengths) != len(files):
            raise named[split]["shard_lengths"].error(
                f"has {len(lengths)} numbers for {len(files)} files"
            )
        if lengths:
            counts |= zip(splits[split], (own.whole(least=0) for own in lengths), strict=True)
    return splits, counts
