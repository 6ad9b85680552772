"""A CSV file with the columns ``path`` and ``label`` or ``labels``, and maybe ``split``."""

from __future__ import annotations

import csv
import io
from collections.abc import Container, Mapping
from pathlib import Path

from rmt.classification.datasets.drawn import Drawn, save_images
from rmt.classification.datasets.label_cells import labels_of, separator
from rmt.classification.recipe import Data
from rmt.classification.samples import MultiLabelSamples, Samples
from rmt.data.classes import class_list, class_name, whole_number
from rmt.data.findings import Findings
from rmt.data.formats import Format, Source
from rmt.data.named_files import FileFinder
from rmt.data.splits import SPLITS, Split, split_of
from rmt.data.text import read_text

_LABEL, _LABELS = "label", "labels"
#: Key of what a row has more cells for than there are columns.
_MORE = "\0"
_INCOMPLETE = "row without path or label|rows without path or label"
# What the names of another machine may hold, and those that climb.
_STRANGE = ("\\", "%", ":", "..")


def sign(root: Path) -> str | None:
    """Return what a CSV file is recognised by: its suffix."""
    return root.name if root.suffix.lower() == ".csv" and root.is_file() else None


def read(source: Source[Data]) -> Mapping[Split, Samples]:
    """Read the images of each split; without a column ``split`` all are ``train``.

    Paths start at the file's folder; a backslash counts as a slash. Images have several labels, or
    none, if ``data.multi_label`` says so or the column is called ``labels``.

    Raises:
        ValueError: if a column is missing, or no row can be used.
    """
    rows, column = _rows(source.root, source.data.multi_label)
    several = source.data.multi_label
    if several is None:
        several = column == _LABELS
    mark = separator(row[column] for row in rows) if several else None
    by_split: dict[Split, list[tuple[Path, tuple[str, ...]]]] = {}
    home = source.root.parent
    finder = FileFinder(home, root=home)
    for line, row in enumerate(rows, 2):
        where = f"{source.root.name} line {line}"
        found = _checked(row, where, source.findings)
        if not found:
            continue
        split, name = found
        own = _labels(row, column, where, source.findings, several=several, mark=mark)
        if own is not None:
            if path := _path(name, home, finder):
                by_split.setdefault(split, []).append((path, own))
            else:
                finder.report(name, findings=source.findings, what=f"{where}, {name}")
    every = [own for entries in by_split.values() for _, own in entries]
    labels = {label: label for own in every for label in own}
    numbered = all(whole_number(label).isdecimal() for label in labels)
    if numbered:  # 1.0 is 1
        labels = {label: whole_number(label) for label in labels}
    names = sorted(set(labels.values()), key=int if numbered else None)
    classes = class_list(names, source.classes)
    at = {label: classes.index(name) for label, name in labels.items()}
    if several:
        told = "blanks" if mark is None else repr(mark)
        source.findings.note("label|labels", count=sum(map(len, every)), what=f"divided by {told}")
        source.findings.note("image without a label|images without a label", count=every.count(()))
    kind = MultiLabelSamples if several else Samples
    return {
        split: kind(
            [path for path, _ in entries],
            [tuple(at[each] for each in own) if several else at[own[0]] for _, own in entries],
            classes,
        )
        for split in SPLITS
        if (entries := by_split.get(split))
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


def _rows(path: Path, several: bool | None) -> tuple[list[dict[str, str]], str]:
    """Return the rows of a file, and which of its columns has the labels."""
    text = read_text(path)
    first = text.partition("\n")[0]
    # Where the comma is for decimals, spreadsheets divide columns by semicolons.
    heads = {m: {word.strip(' "\r').lower() for word in first.split(m)} for m in ",;\t"}
    mark = next((m for m, head in heads.items() if _label_column(head, several)), ",")
    try:
        rows = [
            {key.strip().lower(): "".join(value or "") for key, value in row.items()}
            for row in csv.DictReader(io.StringIO(text, newline=""), restkey=_MORE, delimiter=mark)
        ]
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from error
    column = _label_column(rows[0], several) if rows else None
    if column is None:
        raise ValueError(
            f"{path} must begin with a line that names the columns path and label (or labels, if "
            f"an image has several; and maybe split); it has {list(rows[0]) if rows else 'no rows'}"
        )
    return rows, column


def _label_column(names: Container[str], several: bool | None) -> str | None:
    """Return which of the columns has the labels, None if there is none, or no ``path``."""
    wanted = (_LABELS, _LABEL) if several else (_LABEL, _LABELS)
    return next((name for name in wanted if name in names and "path" in names), None)


def _checked(row: Mapping[str, str], where: str, findings: Findings) -> tuple[Split, str] | None:
    """Return split and path of a row, or None if one is missing."""
    name, given = (row.get(key, "").strip() for key in ("path", "split"))
    split = split_of(given or "train")
    if not name:
        findings.fault(_INCOMPLETE, where)
    elif split is None:
        findings.fault("row of an unknown split|rows of unknown splits", f"{where}: {given!r}")
    else:
        return split, name
    return None


def _labels(
    row: Mapping[str, str],
    column: str,
    where: str,
    findings: Findings,
    *,
    several: bool,
    mark: str | None,
) -> tuple[str, ...] | None:
    """Return the labels of a row, or None if they cannot be read."""
    cell = row[column].strip()
    if not several:
        if cell:
            return (class_name(cell),)
        findings.fault(_INCOMPLETE, where)
        return None
    if row.get(_MORE, "").strip():  # labels with commas and without quotation marks
        findings.fault("row of too many cells|rows of too many cells", where)
        return None
    labels = labels_of(cell, mark)
    if labels is None:
        kind = "row with a semicolon between labels|rows with semicolons between labels"
        findings.fault(kind, f"{where}: {cell!r}")
    return labels


def _path(name: str, folder: Path, finder: FileFinder) -> Path | None:
    # Only a strange name is looked for: there may be millions, and reading finds what is gone.
    if not name.isascii() or name.startswith("/") or any(part in name for part in _STRANGE):
        return finder.find(name)
    path = folder / name
    return None if finder.confines.is_left_by(path) else path


FORMAT = Format(
    name="csv",
    title="CSV",
    layout="a .csv file with the columns path and label or labels",
    sign=sign,
    read=read,
    write=write,
)
