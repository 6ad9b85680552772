"""Where a YOLO data set names its classes, and where the images of each split lie."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rmt.data.classes import class_name
from rmt.data.findings import Findings
from rmt.data.folders import (
    files_below,
    find_folder,
    image_suffixes,
    images_in,
    is_hidden,
    subfolders,
)
from rmt.data.named_files import Confines, FileFinder
from rmt.data.splits import Split, sort_by_split, split_of
from rmt.data.text import read_lines, read_text
from rmt.messages import printable
from rmt.untrusted import read_yaml

_YAML = (".yaml", ".yml")
_MOST_CLASSES = 100_000
_MOST_NUMBERS = 10_000  # of the keypoints of an object
_MOST_TRIES = 100  # text files that are looked at before a folder is said to have no labels


@dataclass(frozen=True)
class Described:
    """What a data set says of itself.

    Attributes:
        sign: what it is recognised by.
        classes: names, empty if nothing tells them.
        file: that says so, whose folder paths start from; None without a file.
        keypoints: numbers behind the box in a pose label.
        base: what ``path`` of ``data.yaml`` says.
        splits: what it says of each split: a folder, a list file, or several.
    """

    sign: str
    classes: tuple[str, ...] = ()
    file: Path | None = None
    keypoints: int = 0
    base: str = ""
    splits: Mapping[Split, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Images of a split.

    Attributes:
        origin: folder or list that names them.
        images: the files, sorted.
        root: of the data set.
        folder: of images, whose labels lie at the same places below ``labels``; without it labels
            are found as ultralytics does, by the folder ``images`` in an image's path.
        labels: folder of labels.
    """

    origin: Path
    images: Sequence[Path]
    root: Path
    folder: Path | None = None
    labels: Path | None = None

    def labels_of(self) -> list[Path]:
        """Return the label file of each image, which need not exist."""
        if self.folder is not None and self.labels is not None and self.labels.is_dir():
            start, labels = len(os.fspath(self.folder)), os.fspath(self.labels)
            ends = (os.path.splitext(os.fspath(image))[0][start:] for image in self.images)
            return [Path(f"{labels}{end}.txt") for end in ends]
        of_folder = {folder: self._labels_in(folder) for folder in {i.parent for i in self.images}}
        return [of_folder[image.parent] / f"{image.stem}.txt" for image in self.images]

    def _labels_in(self, folder: Path) -> Path:
        """Return the folder of labels for a folder of images."""
        home = self.root if folder.is_relative_to(self.root) else Path(folder.anchor)
        parts = list(folder.relative_to(home).parts)
        at = next((i for i in reversed(range(len(parts))) if parts[i].lower() == "images"), None)
        if at is not None:
            parts[at] = "Labels" if parts[at][0].isupper() else "labels"
        found = home.joinpath(*parts)
        beside = next(folder.glob("[!.]*.txt"), None) if folder.is_dir() else None
        return found if beside is None or found.is_dir() else folder


def describe(root: Path) -> Described | None:
    """Return what a folder says of itself as a YOLO data set, or None if it is none.

    ``data.yaml`` counts before other YAML files; only one with ``names`` does. Then come
    ``obj.data`` and ``obj.names`` (darknet, CVAT), and ``classes.txt`` beside a folder of labels.

    Raises:
        ValueError: if a ``data.yaml`` is broken or has no names.
    """
    if root.is_file():
        return _of_yaml(root) if root.suffix.lower() in _YAML else None
    files = [
        p for p in sorted(root.iterdir()) if p.suffix.lower() in _YAML and not is_hidden(p.name)
    ]
    files.sort(key=lambda path: path.stem.lower() not in ("data", "dataset"))
    for path in files:
        if path.stem.lower() == "data" or _names_classes(path):
            return _of_yaml(path)
    for path in (root / "obj.data", root / "data" / "obj.data"):
        if path.is_file():
            return _of_darknet(path, root)
    if not _has_labels(root):
        return None
    for path in (root / "classes.txt", root / "obj.names", root / "labels" / "classes.txt"):
        if path.is_file():
            return Described(path.name, tuple(map(class_name, read_lines(path))), path)
    return Described("label files")


def find_places(root: Path, described: Described, findings: Findings) -> dict[Split, list[Place]]:
    """Return where the images of each split lie; of an undivided data set all are ``train``.

    Raises:
        ValueError: if ``data.yaml`` names something that is not there.
    """
    if described.splits and described.file:
        return _named_places(root, described, findings)
    images, labels = find_folder(root, "images"), find_folder(root, "labels")
    inside = _split_folders(images)
    if images and inside:
        below = _split_folders(labels)
        found = {
            split: Place(
                p, images_in(p, findings), root, p, below.get(split, root / "labels" / p.name)
            )
            for split, p in inside.items()
        }
        return {split: [place] for split, place in found.items() if place.images}
    by_split = {
        split: place
        for split, folder in _split_folders(root).items()
        if (place := _place(folder, root, findings)).images
    }
    if by_split:
        return {split: [place] for split, place in by_split.items()}
    place = _place(root, root, findings)
    return {"train": [place]} if place.images else {}


def _named_places(root: Path, described: Described, findings: Findings) -> dict[Split, list[Place]]:
    """Return what ``data.yaml`` names, as ultralytics reads it."""
    places: dict[Split, list[Place]] = {}
    for split, names in described.splits.items():
        found = [_named_place(name, root, described, findings) for name in names]
        if None in found:
            usual = find_places(root, replace(described, splits={}), findings)
            said = f"says {split}: {names[found.index(None)]}, which is not there"
            if split not in usual and split == "test":  # Roboflow names one in any case
                findings.note("split not used|splits not used", what=f"{described.sign} {said}")
                continue
            if split not in usual:
                raise ValueError(
                    f"{described.file} {said}; name a folder of images, or a .txt that lists "
                    f"them, below {root}: nothing outside of it is read"
                )
            found = [*usual[split]]
        places[split] = [place for place in found if place is not None]
    return _without_overlap(places, findings)


def _without_overlap(
    places: dict[Split, list[Place]], findings: Findings
) -> dict[Split, list[Place]]:
    """Drop the splits that hold the training images once more, as in coco128: they test nothing."""
    files = {split: {p for place in own for p in place.images} for split, own in places.items()}
    for split in ("val", "test"):
        if files.get(split) and files[split] == files.get("train"):
            kind = f"{split} image that is also of train|{split} images that are also of train"
            what = "data.yaml names the same twice; some are held out instead"
            findings.note(kind, count=len(files[split]), what=what)
            del places[split]
    return places


def _named_place(name: str, root: Path, described: Described, findings: Findings) -> Place | None:
    """Return the images in a folder, or those that a text file lists."""
    assert described.file is not None
    for path in _candidates(name, root, described):
        if path.is_dir():
            return _place(path, root, findings)
        if path.is_file():
            return _listed(path, root, findings)
    return None


def _candidates(name: str, root: Path, described: Described) -> list[Path]:
    """Return where a name may lead: below ``path``, or, where the set was moved, below the root.

    Roboflow's ``../train/images`` lies below the root too, whatever lies beside it. Nothing outside
    of the root is meant.
    """
    assert described.file is not None
    home = described.file.parent
    forward = name.replace("\\", "/")
    confines = Confines(root)
    bases = [confines.join(home, described.base.replace("\\", "/")), home, root]
    parts = [part for part in forward.split("/") if part not in ("", ".", "..")]
    tails = ["/".join(parts[start:]) for start in range(len(parts))]
    own = (confines.join(base, each) for each in (forward, *tails) for base in bases if base)
    return [path for path in own if path is not None]


def _place(folder: Path, root: Path, findings: Findings) -> Place:
    """Return the images of a folder: those in its ``images``, or its own."""
    images = find_folder(folder, "images")
    if images and (found := images_in(images, findings)):
        labels = find_folder(folder, "labels") or folder / "labels"
        return Place(images, found, root, images, labels)
    return Place(folder, images_in(folder, findings), root)


def _listed(listing: Path, root: Path, findings: Findings) -> Place:
    """Return the images that a text file lists, which may have been written elsewhere."""
    finder, found = FileFinder(listing.parent, root, root=root), []
    for line in read_lines(listing):
        name = line.removeprefix("./")
        if path := finder.find(name):
            found.append(path)
        else:
            finder.report(name, findings=findings, what=f"{line} of {listing.name}")
    return Place(listing, list(dict.fromkeys(found)), root)


def _split_folders(root: Path | None) -> dict[Split, Path]:
    return sort_by_split((path.name, path) for path in subfolders(root))[0] if root else {}


def _of_yaml(path: Path) -> Described:
    content = read_yaml(read_text(path), str(path))
    names = content.get("names") if isinstance(content, dict) else None
    count = content.get("nc") if isinstance(content, dict) else None
    if not names and isinstance(count, int) and 0 < count <= _MOST_CLASSES:
        names = [f"class_{i}" for i in range(count)]  # as ultralytics names them
    if not names:
        raise ValueError(f"{path} has no 'names'")
    if isinstance(names, dict) and _numbers(names) == list(range(len(names))):
        names = [names[key] for key in sorted(names, key=int)]
    if not isinstance(names, list):
        raise ValueError(
            f"{path} has names {printable(repr(names))}; expected a list, or a mapping from the "
            "numbers 0, 1, ..."
        )
    return Described(
        path.name,
        tuple(class_name(str(name)) for name in names),
        path,
        keypoints=_keypoints(content.get("kpt_shape"), path),
        base=str(content.get("path") or ""),
        splits=_splits(content.items()),
    )


def _keypoints(shape: Any, path: Path) -> int:
    """Return how many numbers a label has for its keypoints."""
    if shape is None:
        return 0
    known = isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape)
    if not known or math.prod(shape) > _MOST_NUMBERS:
        raise ValueError(
            f"{path} has kpt_shape {printable(shape)}; expected the number of keypoints and of "
            "numbers for each, such as [17, 3]"
        )
    return math.prod(shape)


def _of_darknet(path: Path, root: Path) -> Described:
    pairs = (line.partition("=") for line in read_lines(path))
    content = {key.strip(): value.strip() for key, _, value in pairs if value}
    finder = FileFinder(path.parent, root, root=root)
    names = finder.find(content.get("names", "obj.names"))
    if names is None:
        raise ValueError(f"{path} says names = {content.get('names')}, which is not there")
    return Described(
        path.name, tuple(map(class_name, read_lines(names))), path, splits=_splits(content.items())
    )


def _splits(items: Iterable[tuple[Any, Any]]) -> dict[Split, Sequence[str]]:
    """Return what a description says of each split; an empty value says nothing."""
    named = [
        (key, value) for key, value in items if isinstance(key, str) and value and split_of(key)
    ]
    found, _ = sort_by_split(named)
    return {
        split: [str(v) for v in value] if isinstance(value, list) else [str(value)]
        for split, value in found.items()
    }


def _names_classes(path: Path) -> bool:
    """Return whether a YAML file is a description; args.yaml, which ultralytics leaves, is none."""
    try:
        content = read_yaml(read_text(path), str(path))
    except ValueError:
        return False
    return isinstance(content, dict) and bool(content.get("names"))


def _numbers(names: Mapping[Any, Any]) -> list[int] | None:
    """Return the keys of a mapping as sorted numbers, or None if they are not."""
    try:
        return sorted(int(key) for key in names)
    except (TypeError, ValueError):
        return None


def _has_labels(root: Path) -> bool:
    """Return whether a folder holds label files: below ``labels``, or named as an image beside."""
    texts = (Path(path) for path in files_below(root) if path.lower().endswith(".txt"))
    return any(
        "labels" in map(str.lower, path.relative_to(root).parts[:-1])
        or any(path.with_suffix(suffix).is_file() for suffix in image_suffixes())
        for path in islice(texts, _MOST_TRIES)
        if path.name != "classes.txt"
    )
