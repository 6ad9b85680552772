"""Which files of a folder are images."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from rmt.data.findings import Findings
from rmt.data.images import is_animated, register_plugins

# What photos and their like are stored in; of these, those count that Pillow reads here.
_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".heic", ".heif", ".mpo",
)  # fmt: skip
#: Files that may be animated are looked at, up to so many.
_MOST_LOOKS = 1000
#: Folders that systems and tools leave behind; hidden ones begin with a dot.
_JUNK_FOLDERS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
_JUNK_FILES = {"thumbs.db", "desktop.ini", "icon\r"}
#: Files that lie beside images and are none.
_TEXT_SUFFIXES = {
    ".txt", ".xml", ".json", ".jsonl", ".csv", ".tsv", ".yaml", ".yml", ".md", ".rst", ".html",
    ".pdf", ".log", ".ini", ".cfg", ".py", ".ipynb", ".sh", ".cache", ".db", ".pt", ".names",
    ".data", ".sha256", ".md5",
}  # fmt: skip


@cache
def image_suffixes() -> tuple[str, ...]:
    """Return the suffixes, in lower case, of the image files that Pillow or a plugin reads here."""
    readable = register_plugins()
    return tuple(suffix for suffix in _SUFFIXES if suffix in readable)


def is_image_name(name: str | Path) -> bool:
    """Return whether a file is named as an image."""
    return os.path.splitext(name)[1].lower() in image_suffixes()


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or left behind by a system (``__MACOSX``)."""
    return name.startswith(".") or name.lower() in _JUNK_FOLDERS or name.lower() in _JUNK_FILES


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden, sorted."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def find_folder(folder: Path, *names: str) -> Path | None:
    """Return the first folder in a folder that bears one of these names, in any case."""
    inside = {path.name.lower(): path for path in reversed(subfolders(folder))}
    exact = (folder / name for name in names)
    return next(
        (path for path in exact if path.is_dir()),
        next((inside[name.lower()] for name in names if name.lower() in inside), None),
    )


def files_below(
    folder: str | Path, unreadable: Callable[[str, OSError], object] | None = None
) -> Iterator[str]:
    """Yield the paths of the files below a folder that are not hidden; there may be millions.

    Links to folders are followed, as torchvision and timm do, but never into a folder that the link
    lies in.

    Args:
        folder: searched deep.
        unreadable: takes each folder that cannot be listed, and why; None passes over them, which
            is for those who look only whether there is something.
    """
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [(os.fspath(folder), ())]
    while waiting:
        place, within = waiting.pop()
        try:
            stat = os.stat(place)
            own = stat.st_dev, stat.st_ino
            if own in within:
                continue
            with os.scandir(place) as entries:
                for entry in entries:
                    if is_hidden(entry.name):
                        continue
                    if _is_folder(entry):
                        waiting.append((entry.path, (*within, own)))
                    else:
                        yield entry.path
        except OSError as error:
            if unreadable:
                unreadable(place, error)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link into a folder that cannot be read; who opens it is told
        return False


def note_unreadable(findings: Findings | None) -> Callable[[str, OSError], None]:
    """Return what takes the folders that cannot be listed: each is a fault.

    Without ``findings`` the first one is an error.
    """

    def take(folder: str, error: OSError) -> None:
        if findings is None:
            raise error
        kind = "folder that cannot be read|folders that cannot be read"
        findings.fault(kind, f"{error.strerror}: {folder}")

    return take


def images_in(
    folder: Path,
    findings: Findings | None = None,
    unreadable: Callable[[str, OSError], object] | None = None,
) -> list[Path]:
    """Return the files below a folder that are named as images and not hidden, sorted.

    Args:
        folder: searched deep.
        findings: counts the files of other types that may hold images, and animated ones.
        unreadable: takes the folders that cannot be listed; ``findings`` if None.

    Raises:
        OSError: if a folder cannot be listed and nothing takes that.
    """
    images, others = [], []
    take = unreadable or note_unreadable(findings)
    for path in files_below(folder, take) if folder.is_dir() else ():
        (images if is_image_name(path) else others).append(Path(path))
    images.sort()
    if findings:
        note_others(others, findings)
        note_animated(images, findings)
    return images


def note_others(files: Iterable[Path], findings: Findings) -> None:
    """Count, by their suffix, the files that are not images but might be meant as such."""
    strange = sorted(path for path in files if path.suffix.lower() not in _TEXT_SUFFIXES)
    for suffix, count in Counter(path.suffix.lower() for path in strange).items():
        first = next(path for path in strange if path.suffix.lower() == suffix)
        one = f"{suffix} file" if suffix else "file without suffix"
        needs = " without pillow-heif" if suffix in (".heic", ".heif") else ""
        what = f"not read{needs}, first {first.name}"
        findings.note(f"{one}|{one.replace('file', 'files')}", count=count, what=what)


def note_animated(images: Iterable[Path], findings: Findings) -> None:
    """Count the animated GIF and WebP files, of which the first frame is read."""
    possible = [path for path in images if path.suffix.lower() in (".gif", ".webp")]
    animated = [path for path in possible[:_MOST_LOOKS] if is_animated(path)]
    what = f"the first frame is read, first {animated[0].name}" if animated else ""
    findings.note("animated file|animated files", count=len(animated), what=what)


def note_unlisted(images: Iterable[Path], findings: Findings) -> None:
    """Count the image files that lie beside the images of a data set and are none of its own.

    Args:
        images: of all splits.
        findings: takes the count.
    """
    used = {os.fspath(path) for path in images}
    lost: list[str] = []
    for folder in {os.path.dirname(path) for path in used}:
        with suppress(OSError), os.scandir(folder) as entries:  # it need not be listed to be used
            lost += [
                entry.path
                for entry in entries
                if entry.path not in used
                and is_image_name(entry.name)
                and not is_hidden(entry.name)
            ]
    what = f"nothing annotates them, first {os.path.basename(min(lost))}" if lost else ""
    findings.note("image not used|images not used", count=len(lost), what=what)


def find_images(sources: Iterable[str | Path], findings: Findings | None = None) -> list[Path]:
    """Return the image files that files, folders (searched deep) and glob patterns name, in order.

    A file is taken whatever its suffix; in a folder only the suffixes of images count, and hidden
    files do not. A name of what is not there stays in the list, for a report in its place; so does
    a folder that cannot be read, below a folder or where a pattern leads.

    Args:
        sources: files, folders and patterns.
        findings: counts what folders hold that may be images and is left out, and animated files.

    Raises:
        ValueError: if a folder or pattern holds no image, or none of the files is there.
    """
    found: list[Path] = []
    for source in sources:
        path = local_path(source)
        if os.path.isdir(path):
            found += _in_folder(path, findings)
        elif os.path.exists(path) or not glob.has_magic(str(source)):
            found.append(path)
            if findings:
                note_animated([path], findings)
        else:
            matches = [Path(p) for p in glob.glob(str(source), recursive=True)]
            matches = [path for path in matches if os.path.isfile(path)]
            matches += _closed_folders(str(source))
            if not matches:
                raise ValueError(f"no file, folder or pattern {str(source)!r} matches a file")
            found += sorted(matches)
    if all(map(_is_absent, found)):
        raise ValueError(f"there is no file or folder {str(found[0])!r}" if found else "no image")
    return found


def _in_folder(folder: Path, findings: Findings | None) -> list[Path]:
    """Return the images below a folder, and the folders that cannot be read, sorted."""
    closed: list[Path] = []
    images = images_in(folder, findings, lambda at, _: closed.append(Path(at)))
    if not images and not closed:
        listed = ", ".join(image_suffixes())
        raise ValueError(f"folder {str(folder)!r} holds no image ({listed})")
    return sorted(images + closed)


def _closed_folders(pattern: str) -> set[Path]:
    """Return the folders that a pattern leads into and that cannot be read; glob skips them."""
    closed: set[Path] = set()
    while glob.has_magic(pattern := os.path.dirname(pattern)):
        for folder in glob.iglob(pattern, recursive=True):
            try:
                if os.path.isdir(folder):
                    os.scandir(folder).close()
            except OSError:
                closed.add(Path(folder))
    return closed


def _is_absent(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError:  # it may be there: who opens it is told
        return False
    return False


def local_path(name: str | Path) -> Path:
    """Return the path that a name is, or a ``file://`` address.

    Raises:
        ValueError: for an address on the network.
    """
    address = urlsplit(str(name))
    if address.scheme in ("http", "https", "ftp"):
        raise ValueError(f"{name} is on the network; download it, and name the file")
    if address.scheme == "file":
        return Path(url2pathname(address.path))
    return Path(name)
