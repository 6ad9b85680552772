"""Tar files of images: one per class, or with class folders inside, as ImageNet comes."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path, PurePosixPath

from rmt.classification.datasets.drawn import Drawn, as_png
from rmt.classification.datasets.members import Labelled, Member, holds_keys
from rmt.classification.datasets.packed import files_in, samples_of, with_class_folders
from rmt.classification.datasets.tar_index import indexed
from rmt.classification.recipe import Data
from rmt.classification.samples import Samples
from rmt.data.classes import class_name
from rmt.data.folders import is_image_name
from rmt.data.formats import Format, Source
from rmt.data.splits import Split


def sign(root: Path) -> str | None:
    """Return the first tar file, unless it is a shard of webdataset."""
    found = files_in(root, ".tar")
    return found[0].name if found and not holds_keys(found[0]) else None


def read(source: Source[Data]) -> Mapping[Split, Samples]:
    """Find the images of tar files, named as their class or holding class folders.

    ImageNet's ``ILSVRC2012_img_train.tar``, a tar of one tar per class, may stay as it is.

    Raises:
        ValueError: if a file is not a tar file, or compressed; or if a later split has a class that
            the first lacks.
    """
    findings = source.findings
    parts = indexed(source.root, by_folder, findings)
    found = samples_of(parts, known=source.classes, numbered=False, findings=findings)
    return with_class_folders(found, source)


def by_folder(found: Iterator[Member]) -> Iterator[Labelled]:
    """Yield the images with the names of their folders, or of their tar file."""
    for member in found:
        path = PurePosixPath(member.name)
        if is_image_name(path.name):
            yield member, class_name(path.parent.name or member.file.stem)


def write(root: Path, split: Split, drawn: Drawn) -> Path:
    """Write ``root/SPLIT.tar`` with class folders; return the folder of the data set."""
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / f"{split}.tar", "w") as archive:
        for name, images in drawn.items():
            for i, image in enumerate(images):
                add_file(archive, f"{split}/{name}/{name}_{i}.png", as_png(image))
    return root


def add_file(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Put a file into a tar file."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, BytesIO(content))


FORMAT = Format(
    name="tar",
    title="tar files",
    layout=".tar files, one per class or with class folders inside",
    sign=sign,
    read=read,
    write=write,
)
