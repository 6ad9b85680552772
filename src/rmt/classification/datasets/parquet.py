"""Images in Parquet files as Hugging Face writes them: rows of an image file and a class.

A row is reached through its row group, which is read whole: Hugging Face writes images in groups
of 100. Each process keeps the groups it used last, up to :data:`KEPT` bytes. Rows in their order,
as in an evaluation, read each group once, and so does a shuffled run over files that fit there;
over larger files a shuffled epoch reads a group for most images.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rmt.classification.datasets.drawn import Drawn, as_png
from rmt.classification.datasets.packed import (
    Entry,
    files_by_split,
    files_in,
    samples_of,
    with_class_folders,
)
from rmt.classification.recipe import Data
from rmt.classification.samples import Packed, Samples
from rmt.data.classes import whole_number
from rmt.data.formats import Format, Source
from rmt.data.splits import Split
from rmt.files import check_file
from rmt.untrusted import Field, read_json


@dataclass(frozen=True, slots=True)
class Row(Packed):
    """An image in a Parquet file.

    Its name is that which the image file had, or else the row's number in the whole file.

    Attributes:
        column: of the images.
        group: the row group.
        row: in the group.
    """

    column: str
    group: int
    row: int

    def __str__(self) -> str:
        return f"{self.file}: row group {self.group}, row {self.row} ({self.name})"

    def read(self) -> bytes:
        """Return the content of the image file; raises ``ValueError`` naming file and row."""
        try:
            groups = _groups(os.getpid())
            content = groups.get(self.file, self.column, self.group)[self.row].as_py()
        except (ValueError, OSError) as error:  # all that Arrow raises is one of these
            raise ValueError(f"{self} cannot be read: {error}") from error
        if content is None:
            raise ValueError(f"{self} holds no image, only a path")
        return content


#: Bytes of row groups that each process keeps.
KEPT = 2**28
#: What stands in the column of labels where there is none.
_UNLABELLED = ("-1", "None", "nan")


def sign(root: Path) -> str | None:
    """Return the first Parquet file."""
    found = files_in(root, ".parquet")
    return found[0].name if found else None


def read(source: Source[Data]) -> Mapping[Split, Samples]:
    """Find the images of Parquet files; a split without classes (all -1) is left out.

    Class names come from the schema's description by Hugging Face; without it the classes are
    named by their numbers, or as the column calls them.

    Raises:
        ValueError: if pyarrow is not installed, or a file has no columns of images and classes.
    """
    names: tuple[str, ...] | None = None
    parts: dict[Split, list[Entry]] = {}
    for split, files in files_by_split(source.root, ".parquet").items():
        entries = []
        for file in files:
            names, found = _entries(file)
            entries += found
        labelled = [entry for entry in entries if entry[1] not in _UNLABELLED]
        if not labelled:
            what = f"the {split} split has no labels"
            source.findings.note("image not used|images not used", count=len(entries), what=what)
            continue
        for row, _ in (entry for entry in entries if entry[1] in _UNLABELLED):
            source.findings.fault("image without label|images without label", str(row))
        parts[split] = labelled
    found = samples_of(parts, names=names, known=source.classes, findings=source.findings)
    return with_class_folders(found, source)


def write(root: Path, split: Split, drawn: Drawn) -> Path:
    """Write ``data/SPLIT-00000-of-00001.parquet``; return the folder of the data set."""
    import pyarrow
    from pyarrow.parquet import write_table

    kind = {"names": list(drawn), "_type": "ClassLabel"}
    about = {"info": {"features": {"image": {"_type": "Image"}, "label": kind}}}
    image, label = [], []
    for number, (name, images) in enumerate(drawn.items()):
        for i, own in enumerate(images):
            image.append({"bytes": as_png(own), "path": f"{name}_{i}.png"})
            label.append(number)
    table = pyarrow.table({"image": image, "label": label})
    (root / "data").mkdir(parents=True, exist_ok=True)
    path = root / "data" / f"{split}-00000-of-00001.parquet"
    write_table(table.replace_schema_metadata({"huggingface": json.dumps(about)}), path)
    return root


def _entries(file: Path) -> tuple[tuple[str, ...] | None, list[Entry]]:
    """Return the class names, if the file tells them, and its images with their classes."""
    with _open(file) as source:
        image, label, names = _columns(source.schema_arrow, file)
        fields = [label]
        if any(field.name == "path" for field in source.schema_arrow.field(image).type):
            fields.append(f"{image}.path")
        table = source.read(columns=fields, use_threads=False)
        places = _places(source.metadata)
        paths = [None] * len(table)
        if len(fields) == 2:
            paths = [row["path"] for row in table[image].to_pylist()]
        entries: list[Entry] = [
            (Row(file, path or f"{number}", image, group, row), whole_number(str(value)))
            for number, ((group, row), path, value) in enumerate(
                zip(places, paths, table[label].to_pylist(), strict=True)
            )
        ]
    return names, entries


def _places(metadata: Any) -> Iterator[tuple[int, int]]:
    for group in range(metadata.num_row_groups):
        for row in range(metadata.row_group(group).num_rows):
            yield group, row


def _columns(schema: Any, file: Path) -> tuple[str, str, tuple[str, ...] | None]:
    """Return the columns of images and of classes, and the class names."""
    where = f"{file}: its description by Hugging Face"
    described = read_json((schema.metadata or {}).get(b"huggingface", b"{}"), where)
    features = Field.of(described, where).get("info", {}).get("features", {})
    kinds = {name: features[name] for name in features.mapping()}
    images = [
        field.name
        for field in schema
        if str(field.type).startswith("struct") and field.type.get_field_index("bytes") >= 0
    ]
    of_classes = [n for n, kind in kinds.items() if _is_of_classes(kind)]
    labels = ["label"] if "label" in schema.names else of_classes
    if len(images) != 1 or len(labels) != 1:
        raise ValueError(
            f"{file} has the columns {schema.names}; needed are one of images, "
            "{bytes, path}, and one named 'label'"
        )
    names = features.get(labels[0], {}).get("names", []).items()
    return images[0], labels[0], tuple(name.text() for name in names) or None


def _is_of_classes(kind: Field) -> bool:
    """Return whether a feature is a class; a list of features is not."""
    return isinstance(kind.value, Mapping) and kind.value.get("_type") == "ClassLabel"


class _Groups:
    """The image files of the row groups used last, the latest at the end."""

    def __init__(self) -> None:
        self.kept: OrderedDict[tuple[Path, str, int], Any] = OrderedDict()
        self.size = 0

    def get(self, file: Path, column: str, group: int) -> Any:
        """Return the image files of a row group; raises what Arrow raises if it cannot be read."""
        key = file, column, group
        if key not in self.kept:
            with _open(file) as source:
                fields = [f"{column}.bytes"]
                table = source.read_row_group(group, columns=fields, use_threads=False)
            found = table.flatten().column(f"{column}.bytes")
            self.size += found.nbytes
            while self.kept and self.size > KEPT:
                self.size -= self.kept.popitem(last=False)[1].nbytes
            self.kept[key] = found
        self.kept.move_to_end(key)
        return self.kept[key]


@lru_cache(maxsize=1)
def _groups(process: int) -> _Groups:
    """Return the row groups that ``process`` keeps: a child does not use what its parent opened."""
    return _Groups()


def _open(file: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(
            "reading Parquet files needs pyarrow: pip install 'rmt-vision[parquet]'"
        ) from error
    check_file(file)
    try:
        return ParquetFile(file, memory_map=True)
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} is not a whole Parquet file: {error}") from error


FORMAT = Format(
    name="parquet",
    title="Parquet files",
    layout=".parquet files with a column of images and a column of labels",
    sign=sign,
    read=read,
    write=write,
)
