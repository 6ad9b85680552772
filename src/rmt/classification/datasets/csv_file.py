"""A CSV file with the columns ``path`` and ``label``, and maybe ``split``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from rmt.classification.datasets.drawn import Drawn, save_images
from rmt.classification.recipe import Data
from rmt.classification.samples import Samples
from rmt.data.classes import class_list, class_name, whole_number
from rmt.data.findings import Findings
from rmt.data.formats import Format, Source
from rmt.data.named_files import FileFinder
from rmt.data.splits import SPLITS, Split, split_of
from rmt.data.text import read_text

_COLUMNS = ("path", "label")
# What the names of another machine may hold, and those that climb.
_STRANGE = ("\\", "%", ":", "..")


def sign(root: Path) -> str | None:
    """Return what a CSV file is recognised by: its suffix."""
    return root.name if root.suffix.lower() == ".csv" and root.is_file() else None


def read(source: Source[Data]) -> Mapping[Split, Samples]:
    """Read the images of each split; without a column ``split`` all are ``train``.

    Paths start at the file's folder; a backslash counts as a slash.

    Raises:
        ValueError: if a column is missing, or no row can be used.
    """
    rows = _rows(source.root)
    by_split: dict[Split, list[tuple[Path, str]]] = {}
    home = source.root.parent
    finder = FileFinder(home, root=home)
    for line, row in enumerate(rows, 2):
        where = f"{source.root.name} line {line}"
        found = _checked(row, where, source.findings)
        if found:
            split, name, label = found
            if path := _path(name, home, finder):
                by_split.setdefault(split, []).append((path, label))
            else:
                finder.report(name, findings=source.findings, what=f"{where}, {name}")
    labels = {label: label for entries in by_split.values() for _, label in entries}
    numbered = all(whole_number(label).isdecimal() for label in labels)
    if numbered:  # 1.0 is 1
        labels = {label: whole_number(label) for label in labels}
    names = sorted(set(labels.values()), key=int if numbered else None)
    classes = class_list(names, source.classes)
    at = {label: classes.index(name) for label, name in labels.items()}
    return {
        split: Samples([p for p, _ in own], [at[label] for _, label in own], classes)
        for split in SPLITS
        if (own := by_split.get(split))
    }


def write(root: Path, split: Split, drawn: Drawn) -> Path:
    """Add a split to ``root/images.csv``; return the file, which is what ``data.root`` names."""
    file = root / "images.csv"
    if not file.exists():
        root.mkdir(parents=True, exist_ok=True)
        file.write_text("path,label,split\n", encoding="utf-8")
    with file.open("a", encoding="utf-8", newline="") as target:
        for path, name in save_images(root / "images", split, drawn):
            csv.writer(target).writerow([path.relative_to(root).as_posix(), name, split])
    return file


def _rows(path: Path) -> list[dict[str, str]]:
    text = read_text(path)
    first = text.partition("\n")[0]
    # Where the comma is for decimals, spreadsheets divide columns by semicolons.
    mark = next(
        (m for m in ",;\t" if set(_COLUMNS) <= {w.strip(' "\r').lower() for w in first.split(m)}),
        ",",
    )
    try:
        rows = [
            {key.strip().lower(): value or "" for key, value in row.items() if key is not None}
            for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=mark)
        ]
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from error
    if not rows or not set(_COLUMNS) <= rows[0].keys():
        raise ValueError(
            f"{path} must begin with a line that names the columns path and label (and maybe "
            f"split); it has {list(rows[0]) if rows else 'no rows'}"
        )
    return rows


def _checked(
    row: Mapping[str, str], where: str, findings: Findings
) -> tuple[Split, str, str] | None:
    """Return split, path and label of a row, or None if one is missing."""
    name, label, given = (row.get(key, "").strip() for key in (*_COLUMNS, "split"))
    split = split_of(given or "train")
    if not name or not label:
        findings.fault("row without path or label|rows without path or label", where)
    elif split is None:
        findings.fault("row of an unknown split|rows of unknown splits", f"{where}: {given!r}")
    else:
        return split, name, class_name(label)
    return None


def _path(name: str, folder: Path, finder: FileFinder) -> Path | None:
    # Only a strange name is looked for: there may be millions, and reading finds what is gone.
    if not name.isascii() or name.startswith("/") or any(part in name for part in _STRANGE):
        return finder.find(name)
    path = folder / name
    return None if finder.confines.is_left_by(path) else path


FORMAT = Format(
    name="csv",
    title="CSV",
    layout="a .csv file with the columns path and label",
    sign=sign,
    read=read,
    write=write,
)
