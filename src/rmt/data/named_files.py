"""The file that a name in a data set means, which is never one outside of the data set."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from rmt.data.findings import Findings
from rmt.data.text import unescaped

#: Where tools keep the files that the links in a data set stand for, beside it or above: Hugging
#: Face's cache, git-annex, DVC.
_STORES = ("blobs", ".git/annex/objects", ".dvc/cache")


class Confines:
    """The folders that a data set may lead to.

    A path is checked by its text: what stands in it may not climb above these folders. Links to
    folders are followed wherever they lead, as people put their images on another disk. A link to
    a single file may lead to a file of the data set, or of a store that tools keep.

    Args:
        root: of the data set.
        *others: folders where its files may lie too.
    """

    def __init__(self, root: Path, *others: Path) -> None:
        folders = [os.path.abspath(folder) for folder in (root, *others)]
        self._texts = tuple(os.path.join(folder, "") for folder in folders)
        real = [Path(os.path.realpath(folder)) for folder in folders]
        real += [home / store for home in (real[0], *real[0].parents) for store in _STORES]
        self._real = tuple(os.path.join(folder, "") for folder in real)
        self._links: dict[str, frozenset[str]] = {}

    def join(self, folder: Path, name: str) -> Path | None:
        """Return ``folder / name``, or None if that leads out."""
        if ".." not in name and not os.path.isabs(name) and not os.path.splitdrive(name)[0]:
            return folder / name
        path = Path(os.path.normpath(folder / name))
        return path if os.path.abspath(path).startswith(self._texts) else None

    def is_left_by(self, path: Path) -> bool:
        """Return whether a file is a link that leads out."""
        folder, name = os.path.split(path)
        if folder not in self._links:  # one look at a folder is cheaper than one at each file
            self._links[folder] = _links_in(folder)
        if name not in self._links[folder]:
            return False
        own = os.path.join(os.path.realpath(folder), "")
        return not os.path.realpath(path).startswith((own, *self._real))


class FileFinder:
    """Find the files that annotations name, as tools on other machines wrote the names.

    A name is tried below each folder as it is, and then with backslashes as slashes, ``%20`` as a
    blank, in the other Unicode form, without leading folders (``C:/photos/``, ``../``), and without
    regard to case. What lies outside of the data set is not found: see :class:`Confines`.

    Args:
        folders: where names may start, the likeliest first.
        root: of the data set.
    """

    def __init__(self, *folders: Path, root: Path) -> None:
        self._folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
        self._root = root
        self.confines = Confines(root, *self._folders)
        self._listed: dict[Path, dict[str, Path]] = {}

    def find(self, *names: str) -> Path | None:
        """Return the file that the first of some names means, or None."""
        return next((path for name in names if (path := self._find(name))), None)

    def _find(self, name: str) -> Path | None:
        found = self._below(name)
        if found is not None or not name:
            return found
        for variant in _variants(name):
            if (found := self._below(variant)) is not None:
                return found
        for variant in (name, *_variants(name)):
            for folder in self._folders:
                if (found := self._by_case(folder, variant)) is not None:
                    return found
        return None

    def report(self, *names: str, findings: Findings, what: str, thing: str = "image") -> None:
        """Say of names for which nothing was found whether their file is absent or lies outside.

        Args:
            names: as :meth:`find` took them.
            findings: takes the fault.
            what: names it, and where it stands.
            thing: that is missing, for people.

        Raises:
            ValueError: as :meth:`rmt.data.findings.Findings.fault`.
        """
        meant = [each for name in names if name for each in (name, *_variants(name))]
        if any(_is_file(folder / name) for name in meant for folder in self._folders):
            findings.fault(
                f"{thing} outside of the data set|{thing}s outside of the data set",
                f"{what}; move or copy it into {self._root}, or link its folder there",
            )
        else:
            findings.fault(f"absent {thing}|absent {thing}s", what)

    def _below(self, name: str) -> Path | None:
        for at, folder in enumerate(self._folders):
            path = self.confines.join(folder, name)
            if path is not None and _is_file(path) and not self.confines.is_left_by(path):
                # The next image most likely lies in the same folder.
                self._folders.insert(0, self._folders.pop(at))
                return path
        return None

    def _by_case(self, folder: Path, name: str) -> Path | None:
        path = self.confines.join(folder, name)
        if path is None:
            return None
        if path.parent not in self._listed:
            inside = _files_in(path.parent)
            self._listed[path.parent] = {_plain(own.name): own for own in reversed(inside)}
        found = self._listed[path.parent].get(_plain(path.name))
        if found is None or not _is_file(found) or self.confines.is_left_by(found):
            return None
        return found


def _variants(name: str) -> Iterator[str]:
    """Yield the other ways in which a file may be called, the nearest first."""
    forward = name.replace("\\", "/")
    parts = [p for p in unquote(forward).split("/") if p not in ("", ".", "..") and p[-1:] != ":"]
    seen = {name}
    for start in range(len(parts)):
        tail = "/".join(parts[start:])
        raw = "/".join(forward.split("/")[-len(parts[start:]) :])
        for form in (raw, tail, *(unicodedata.normalize(f, tail) for f in ("NFC", "NFD"))):
            if form not in seen:
                seen.add(form)
                yield form


def _plain(name: str) -> str:
    """Return a name without regard to case, Unicode form, and an ASCII locale's escaped bytes."""
    return unicodedata.normalize("NFC", unescaped(name)).casefold()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a byte that no name has
        return False


def _files_in(folder: Path) -> list[Path]:
    """Return what lies in a folder, sorted; nothing if it cannot be listed."""
    try:
        return sorted(folder.iterdir())
    except (OSError, ValueError):
        return []


def _links_in(folder: str) -> frozenset[str]:
    """Return the names of the links in a folder; none if it cannot be listed."""
    try:
        with os.scandir(folder or ".") as entries:
            return frozenset(entry.name for entry in entries if entry.is_symlink())
    except OSError:
        return frozenset()
