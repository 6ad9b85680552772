"""Shards of webdataset: tar files that hold ``KEY.jpg`` beside ``KEY.cls`` or ``KEY.json``."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from rmt.classification.datasets.drawn import Drawn, as_png
from rmt.classification.datasets.members import Labelled, Member, holds_keys
from rmt.classification.datasets.packed import files_in, samples_of, with_class_folders
from rmt.classification.datasets.tar import add_file
from rmt.classification.datasets.tar_index import indexed
from rmt.classification.recipe import Data
from rmt.classification.samples import Samples
from rmt.data.classes import whole_number
from rmt.data.folders import is_image_name
from rmt.data.formats import Format, Source
from rmt.data.splits import Split
from rmt.data.text import decode_text, read_lines
from rmt.untrusted import Field, read_json


def sign(root: Path) -> str | None:
    """Return the first tar file if it looks like a shard."""
    found = files_in(root, ".tar")
    return found[0].name if found and holds_keys(found[0]) else None


def read(source: Source[Data]) -> Mapping[Split, Samples]:
    """Find the images of shards.

    Class names stand in ``classnames.txt``, one per line; without it the classes are named by
    their numbers, or as ``KEY.cls`` calls them. Files and counts are those of timm's
    ``_info.json``, if it is there.

    A sample without one image and a class is left out.

    Raises:
        ValueError: if a shard is not a tar file, or is shorter than ``_info.json`` says.
    """
    root = source.root
    listing = (root if root.is_dir() else root.parent) / "classnames.txt"
    names = tuple(read_lines(listing)) if listing.is_file() else None
    found = indexed(root, by_key, source.findings)
    parts = samples_of(found, names=names, known=source.classes, findings=source.findings)
    return with_class_folders(parts, source)


def by_key(found: Iterator[Member]) -> Iterator[Labelled | str]:
    """Yield the image of each key with its class, or what is wrong with it."""
    keys: dict[str, dict[str, Member]] = {}
    for member in found:
        path = PurePosixPath(member.name)
        key, _, suffix = path.name.partition(".")
        keys.setdefault(str(path.parent / key), {})[suffix.lower()] = member
    for key, beside in keys.items():
        images = [m for m in beside.values() if is_image_name(m.name)]
        if images or "cls" in beside:
            try:
                yield _labelled(key, images, beside)
            except ValueError as error:
                yield str(error)


def write(root: Path, split: Split, drawn: Drawn) -> Path:
    """Write one shard and ``classnames.txt``; return the folder of the data set."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classnames.txt").write_text("".join(f"{n}\n" for n in drawn), encoding="utf-8")
    with tarfile.open(root / f"toy-{split}-000000.tar", "w") as archive:
        for label, (name, images) in enumerate(drawn.items()):
            for i, image in enumerate(images):
                add_file(archive, f"{name}_{i}.png", as_png(image))
                add_file(archive, f"{name}_{i}.cls", str(label).encode())
    return root


def _labelled(key: str, images: list[Member], beside: dict[str, Member]) -> Labelled:
    if len(images) != 1:
        at = next(iter(beside.values())).file
        raise ValueError(f"{at}: {key} has {len(images)} images; a sample has one")
    (image,) = images
    try:
        if "cls" in beside:
            label = decode_text(beside["cls"].read(), name=str(image)).strip()
        else:
            label = str(_label_in(beside["json"]))
    except (KeyError, ValueError) as error:
        raise ValueError(f"{image} has no class in a .cls or .json beside it") from error
    if not label:
        raise ValueError(f"{image} has an empty .cls")
    return image, whole_number(label)


def _label_in(member: Member) -> str | int | float:
    label = Field(read_json(member.read(), str(member)), str(member))["label"]
    return label.value if isinstance(label.value, str) else label.number()


FORMAT = Format(
    name="webdataset",
    title="webdataset shards",
    layout=".tar files with KEY.jpg beside KEY.cls or KEY.json",
    sign=sign,
    read=read,
    write=write,
)
