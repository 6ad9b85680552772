"""What a data set format is, and how a recipe's data are opened: the same for every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from rmt.data.classes import class_name, few
from rmt.data.findings import Findings
from rmt.data.splits import S, Split, Splits, divide
from rmt.messages import did_you_mean
from rmt.recipes.schema import DataConfig

D = TypeVar("D", bound=DataConfig)


class NoRoot(ValueError):  # noqa: N818 - says what is missing
    """The recipe does not say where the data are."""


@dataclass(frozen=True)
class Source(Generic[D]):
    """A data set to be read.

    Attributes:
        root: folder or file; of a format that needs none, maybe empty.
        data: the recipe's section.
        classes: names that a model was trained with, where they are known: the data may lack some.
        findings: takes what is left out.
    """

    root: Path
    data: D
    classes: tuple[str, ...] | None
    findings: Findings


@dataclass(frozen=True, kw_only=True)
class Format(Generic[D, S]):
    """A data set format: one module with its reader, its sign and its writer.

    Attributes:
        name: in ``data.format``.
        title: for people.
        layout: what one looks like, for people whose data set was not recognised.
        read: returns the images of each split; of an undivided data set all are ``train``.
        sign: returns what a folder or file is recognised by, or None; without a sign a format
            must be named.
        write: writes one split of a data set in this format; what it takes is the task's. Makes
            the toys of the tests, and for detection what ``rmt convert-dataset`` writes.
        needs_root: False for data that come without a folder.
    """

    name: str
    title: str
    layout: str = ""
    read: Callable[[Source[D]], Mapping[Split, S]]
    sign: Callable[[Path], str | None] | None = None
    write: Callable[..., Any] | None = None
    needs_root: bool = True


def table(*formats: Format[D, S]) -> dict[str, Format[D, S]]:
    """Return formats by name, in the order in which their signs are tried."""
    return {each.name: each for each in formats}


def open_parts(
    formats: Mapping[str, Format[D, S]], data: D, classes: Sequence[str] | None = None
) -> tuple[Mapping[Split, S], Format[D, S], str, Findings]:
    """Read the splits that a data set brings, with every image.

    Returns:
        The images of each split; the format, what it was recognised by, and what was left out.

    Raises:
        NoRoot: if the format needs a root and none is given.
        ValueError: for an unknown format (the nearest is named), a root that is not there or looks
            like none, or what the format's reader refuses.
    """
    if data.format != "auto" and data.format not in formats:
        hint = did_you_mean(data.format, ["auto", *formats])
        raise ValueError(f"data.format is {data.format!r}{hint}")
    root = Path(data.root)
    named = formats.get(data.format)
    if named is None or named.needs_root:
        if not data.root:
            raise NoRoot("data.root is empty; name the folder of the data set (--data.root DIR)")
        if not root.exists():
            raise ValueError(
                f"data.root {data.root!r} does not exist; name the folder of the data set "
                "(--data.root DIR)"
            )
    chosen, sign = (named, "") if named else recognise(root, formats)
    findings = Findings(data.max_bad_samples, data.root)
    known = None if classes is None else tuple(map(class_name, classes))
    return chosen.read(Source(root, data, known, findings)), chosen, sign, findings


def open_splits(
    formats: Mapping[str, Format[D, S]],
    data: D,
    classes: Sequence[str] | None = None,
    *,
    labels: Callable[[S], Sequence[int]] | None = None,
) -> Splits[S]:
    """Open the data set that a recipe's ``data`` describes.

    A split that the data bring is kept; where there is no validation split, ``data.val_fraction``
    of the training images is held out, or one of ``data.folds`` parts, the same images each time.

    Args:
        formats: of the task.
        data: the recipe's section.
        classes: names that a model was trained with: the data may lack images of some.
        labels: class of each image, where a share of each class is to be held out.

    Raises:
        ValueError: as :func:`open_parts` and :func:`rmt.data.splits.divide`.
    """
    parts, chosen, sign, findings = open_parts(formats, data, classes)
    where = data.root or chosen.title
    part = (data.fold, data.folds) if data.folds else None
    splits = divide(parts, data.val_fraction, where=where, labels=labels, part=part)
    return replace(splits, format=chosen.title, sign=sign, findings=findings)


def recognise(root: Path, formats: Mapping[str, Format[D, S]]) -> tuple[Format[D, S], str]:
    """Return the format that a folder or file looks like, and what tells.

    Raises:
        ValueError: if it looks like none.
    """
    for each in formats.values():
        if each.sign and (sign := each.sign(root)):
            return each, sign
    layouts = "; ".join(f"{f.title} has {f.layout}" for f in formats.values() if f.layout)
    raise ValueError(
        f"{root} has none of the known layouts: {layouts}. Is it the data set's own folder?"
    )


def check_same_classes(parts: Mapping[Split, S]) -> None:
    """Raise ``ValueError`` unless all splits have the same classes in the same order."""
    first: tuple[Split, tuple[str, ...]] | None = None
    for split, samples in parts.items():
        first = first or (split, samples.classes)
        if samples.classes != first[1]:
            raise ValueError(
                f"the {split} split has the classes {few(samples.classes)}, the {first[0]} split "
                f"{few(first[1])}; they must be the same, in the same order"
            )
