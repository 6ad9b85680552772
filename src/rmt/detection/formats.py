"""Data sets from one format into another."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from rmt.detection import coco, voc, yolo
from rmt.detection.recipe import Data
from rmt.detection.sources import Samples, open_parts
from rmt.messages import did_you_mean

Format = Literal["coco", "voc", "yolo"]
FORMATS: tuple[Format, ...] = ("coco", "voc", "yolo")


def convert(
    source: str | Path, out: str | Path, *, to: str, read_as: Format | Literal["auto"] = "auto"
) -> list[Path]:
    """Write a data set in another format, images included, with the parts that it has.

    COCO's form keeps everything; YOLO's keeps boxes and single polygons; VOC's keeps boxes. The two
    have no word for a crowd, so crowds are left out there.

    Args:
        source: folder of a data set in any format that training reads.
        out: folder to write into; must not hold a data set.
        to: ``coco``, ``voc`` or ``yolo``.
        read_as: the source's format; ``auto`` looks at it.

    Returns:
        The folders of images that were written, one a part.

    Raises:
        ValueError: for an unknown format, a faulty source, an ``out`` that is not empty, or two
            images whose names differ by their folders alone.
    """
    out = Path(out)
    if to not in FORMATS:
        raise ValueError(f"unknown format {to!r}{did_you_mean(to, FORMATS)}")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new folder")
    parts = open_parts(Data(format=read_as, root=str(source)))
    for samples in parts.values():
        _check_names(samples, stems=to != "coco")
    return [_convert(samples, out, part, to) for part, samples in parts.items()]


def _convert(samples: Samples, out: Path, part: str, to: str) -> Path:
    content = samples.only()
    images = [entry | {"file_name": Path(entry["file_name"]).name} for entry in content["images"]]
    folder = write(out, content | {"images": images}, part, to=to)
    for i in range(len(samples)):
        shutil.copy2(samples.path(i), folder)
    return folder


def _check_names(samples: Samples, *, stems: bool) -> None:
    """Refuse images of one name, from different folders: one would replace the other."""
    seen: dict[str, Path] = {}
    for i in range(len(samples)):
        path = samples.path(i)
        other = seen.setdefault(path.stem if stems else path.name, path)
        if other != path:
            raise ValueError(f"{samples.origin}: {other} and {path} would get one name; rename one")


def write(root: Path, content: Mapping[str, Any], part: str, *, to: str) -> Path:
    """Write the annotations of one part in the layout that training reads.

    Args:
        root: of the data set.
        content: in COCO's form, with bare file names.
        part: ``train``, ``val`` or ``test``.
        to: the format.

    Returns:
        The folder that the part's images belong into.
    """
    names = [entry["name"] for entry in content["categories"]]
    folder = root / "images" / part
    if to == "coco":
        folder.mkdir(parents=True, exist_ok=True)
        coco.write(root / "annotations" / f"{part}.json", dict(content))
    elif to == "yolo":
        folder.mkdir(parents=True, exist_ok=True)
        yolo.write(root / "labels" / part, dict(content))
        parts = (p for p in ("train", "val", "test") if (root / "images" / p).is_dir())
        described = {"names": names} | {p: f"images/{p}" for p in parts}
        (root / "data.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    else:
        folder = root / part
        voc.write(folder, dict(content))
        (root / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    return folder
