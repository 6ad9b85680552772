"""Data sets from one format into another."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from rmt.data.findings import Findings
from rmt.data.images import image_size
from rmt.data.named_files import Confines
from rmt.data.splits import Split
from rmt.detection.annotations import Content
from rmt.detection.datasets import FORMATS, open_parts
from rmt.detection.recipe import Data
from rmt.detection.samples import Samples
from rmt.messages import did_you_mean

log = logging.getLogger(__name__)


def convert(source: str | Path, out: str | Path, *, to: str, read_as: str = "auto") -> list[Path]:
    """Write a data set in another format, images included, with the splits that it has.

    COCO's form keeps everything; YOLO's keeps boxes and single polygons; VOC's keeps boxes. The two
    have no word for a crowd, so crowds are left out there, and VOC's difficult objects in YOLO.

    Args:
        source: folder of a data set in any format that training reads.
        out: folder to write into; must not hold a data set.
        to: name of the format to write.
        read_as: the source's format; ``auto`` looks at it.

    Returns:
        The folders of images that were written, one per split.

    Raises:
        ValueError: for an unknown format, a faulty source, an ``out`` that is not empty, or two
            images whose names differ by their folders alone.
    """
    write, out = writer_of(to), new_folder(Path(out))
    parts, findings = open_parts(Data(format=read_as, root=str(source)))
    parts = {
        split: _own_images(samples, Path(source), findings) for split, samples in parts.items()
    }
    if left_out := findings.describe():
        log.warning("%s: %s", source, left_out)
    for samples in parts.values():
        _check_names(samples, stems=to != "coco")
    return [_convert(samples, out, split, write) for split, samples in parts.items()]


def _own_images(samples: Samples, root: Path, findings: Findings) -> Samples:
    """Return the images but those that a link brings in from outside: they would be copied."""
    confines = Confines(root if root.is_dir() else root.parent)
    kept = []
    for i in range(len(samples)):
        if confines.is_left_by(samples.path(i)):
            kind = "image outside of the data set|images outside of the data set"
            what = f"{samples.path(i)} is a link; copy the data set with its files (cp -rL)"
            findings.fault(kind, what)
        else:
            kept.append(i)
    return samples.take(kept)


def writer_of(to: str) -> Callable[[Path, Split, Content], Path]:
    """Return what writes a split of a data set in a format, and returns its folder of images.

    Raises:
        ValueError: for an unknown format.
    """
    if to not in FORMATS:
        raise ValueError(f"unknown format {to!r}{did_you_mean(to, FORMATS)}")
    write = FORMATS[to].write
    assert write is not None
    return write


def new_folder(folder: Path) -> Path:
    """Return a folder that a data set may be written into.

    Raises:
        ValueError: if it is not empty.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; name a new folder")
    return folder


def _convert(
    samples: Samples, out: Path, split: Split, write: Callable[[Path, Split, Content], Path]
) -> Path:
    content = samples.only()
    images = [entry | {"file_name": Path(entry["file_name"]).name} for entry in content["images"]]
    folder = write(out, split, content | {"images": images})
    for i in range(len(samples)):
        _copy(samples, i, folder)
    return folder


def _copy(samples: Samples, index: int, folder: Path) -> None:
    """Copy an image, without the EXIF rotation if its annotations lie in the stored frame."""
    path, entry = samples.path(index), samples.images[samples.ids[index]]
    try:
        turned = image_size(path) == (entry["height"], entry["width"]) != image_size(path)[::-1]
        if turned:
            samples.image(index).save(folder / path.name, quality=95)
            return
    except ValueError:
        pass  # a damaged image goes along as it is, for its reader to name
    shutil.copy2(path, folder)


def _check_names(samples: Samples, *, stems: bool) -> None:
    """Refuse images of one name, from different folders: one would replace the other."""
    seen: dict[str, Path] = {}
    for i in range(len(samples)):
        path = samples.path(i)
        other = seen.setdefault(path.stem if stems else path.name, path)
        if other != path:
            raise ValueError(f"{samples.origin}: {other} and {path} would get one name; rename one")
