"""Images in tar files: one tar a class, class folders in a tar, or webdataset's shards.

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

from rmt.classification.packed import Entry, parts_of, samples_of
from rmt.classification.samples import PARTS, Packed, Samples
from rmt.data.images import SUFFIXES
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


def open_tar(root: Path) -> dict[str, Samples]:
    """Find the images of tar files, named as their class or holding class folders.

    ImageNet's ``ILSVRC2012_img_train.tar``, a tar of one tar a class, may stay as it is.

    Raises:
        ValueError: if a file is no tar file, or compressed; or if classes are only in later parts.
    """
    return samples_of(_parts(root, by_folder), numbered=False)


def open_webdataset(root: Path) -> dict[str, Samples]:
    """Find the images of webdataset's shards: ``KEY.jpg`` with ``KEY.cls``, or ``KEY.json``.

    Class names stand in ``classnames.txt``, one a line; without it the classes are named by their
    numbers, or as ``KEY.cls`` calls them. What timm's ``_info.json`` says of files and counts is
    heeded.

    Raises:
        ValueError: if a shard is no tar file, is shorter than ``_info.json`` says, or a sample has
            not one image and a class.
    """
    home = root if root.is_dir() else root.parent
    listing = home / "classnames.txt"
    names = tuple(listing.read_text().splitlines()) if listing.is_file() else None
    return samples_of(_parts(root, by_key), names=names)


def holds_keys(file: Path) -> bool:
    """Return whether a tar file looks like a shard of webdataset."""
    suffixes = {PurePosixPath(member.name).suffix for member in islice(members(file), 20)}
    return not suffixes.isdisjoint({".cls", ".json"})


def by_folder(found: Iterator[Member]) -> Iterator[Labelled]:
    """Yield the images with the names of their folders, or of their tar file."""
    for member in found:
        path = PurePosixPath(member.name)
        if path.suffix.lower() in SUFFIXES:
            yield member, path.parent.name or member.file.stem


def by_key(found: Iterator[Member]) -> Iterator[Labelled]:
    """Yield the image of each key with its class."""
    keys: dict[str, dict[str, Member]] = {}
    for member in found:
        path = PurePosixPath(member.name)
        key, _, suffix = path.name.partition(".")
        keys.setdefault(str(path.parent / key), {})[suffix.lower()] = member
    for key, beside in keys.items():
        images = [m for m in beside.values() if PurePosixPath(m.name).suffix.lower() in SUFFIXES]
        if images or "cls" in beside:
            if len(images) != 1:
                at = next(iter(beside.values())).file
                raise ValueError(f"{at}: {key} has {len(images)} images; a sample has one")
            yield images[0], _class_of(images[0], beside)


def _class_of(image: Member, beside: dict[str, Member]) -> str:
    try:
        if "cls" in beside:
            label = beside["cls"].read().decode().strip()
        else:
            label = str(json.loads(beside["json"].read())["label"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{image} has no class in a .cls or .json beside it") from error
    if not label:
        raise ValueError(f"{image} has an empty .cls")
    return label


def members(file: Path) -> Iterator[Member]:
    """Yield the files in a tar file, and in the tar files within it, but hidden ones.

    Raises:
        ValueError: if it is damaged, or compressed, so that nothing in it has a place.
    """
    try:
        with tarfile.open(file, "r:") as archive:
            yield from _walk(archive, file, inside=PurePosixPath(), base=0)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{file} is no whole, uncompressed tar file: {error}") from error


def _walk(
    archive: tarfile.TarFile, file: Path, *, inside: PurePosixPath, base: int
) -> Iterator[Member]:
    for info in archive:
        path = inside / info.name
        if not info.isfile() or path.name.startswith("."):
            continue
        start = base + info.offset_data
        if path.suffix == ".tar":
            with tarfile.open(fileobj=archive.extractfile(info), mode="r:") as inner:
                yield from _walk(inner, file, inside=path.with_suffix(""), base=start)
        else:
            yield Member(file, str(path), start, info.size)


def _parts(
    root: Path, entries: Callable[[Iterator[Member]], Iterator[Labelled]]
) -> dict[str, list[Entry]]:
    """Return the images of each part, from an index beside the data where it is up to date.

    Going through the headers of 140 GB takes a minute on a disk of one's own and far longer over a
    network. Where nothing may be written, it is done anew each time.
    """
    home = root if root.is_dir() else root.parent
    parts, counts = _listed(home) if root.is_dir() else ({}, {})
    parts = parts or parts_of(root, ".tar")
    index = home / f".rmt-{entries.__name__}.json"
    try:
        known = json.loads(index.read_text())
    except (OSError, ValueError):
        known = {}
    shards: dict[str, Any] = {}
    for file in (file for files in parts.values() for file in files):
        name, stat = str(file.relative_to(home)), file.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        if name not in known or known[name]["stamp"] != stamp:
            rows = [(m.name, m.start, m.length, label) for m, label in entries(members(file))]
            shards[name] = {"stamp": stamp, "images": rows}
        else:
            shards[name] = known[name]
        if (count := len(shards[name]["images"])) != counts.get(file, count):
            raise ValueError(f"{file} holds {count} images; _info.json says {counts[file]}")
    if shards != known:
        with suppress(OSError):
            write_atomically(index, lambda temporary: temporary.write_text(json.dumps(shards)))

    def images(file: Path) -> Iterator[Entry]:
        for name, start, length, label in shards[str(file.relative_to(home))]["images"]:
            yield Member(file, name, start, length), label

    return {part: [e for file in files for e in images(file)] for part, files in parts.items()}


def _listed(home: Path) -> tuple[dict[str, list[Path]], dict[Path, int]]:
    """Return the shards of each part and the images in each, as ``_info.json`` lists them."""
    listing = home / "_info.json"
    if not listing.is_file():
        return {}, {}
    splits = json.loads(listing.read_text()).get("splits", {})
    parts: dict[str, list[Path]] = {}
    counts: dict[Path, int] = {}
    for part, names in PARTS.items():
        for split in (splits[name] for name in names if name in splits):
            parts[part] = [home / name for name in split["filenames"]]
            if "shard_lengths" in split:
                counts |= zip(parts[part], split["shard_lengths"], strict=True)
            if lost := [path for path in parts[part] if not path.is_file()]:
                raise ValueError(f"{listing} lists {len(lost)} files that are not there: {lost[0]}")
    return parts, counts
