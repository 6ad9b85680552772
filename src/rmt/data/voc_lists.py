"""The lists of Pascal VOC's ``ImageSets``, which name the images of each split."""

from __future__ import annotations

import re
from pathlib import Path

from rmt.data.folders import is_image_name
from rmt.data.splits import Split, sort_by_split


def find_lists(folder: Path) -> dict[Split, Path]:
    """Return the list of each split in a folder of ``ImageSets``.

    Where no name says a split, a single list is all ``train``, as CVAT's ``default.txt``.
    """
    found = sorted(path for path in folder.glob("[!.]*.txt") if path.is_file())
    lists, _ = sort_by_split((path.stem, path) for path in found)
    if not lists and len(found) == 1:
        return {"train": found[0]}
    return lists


def names_of(line: str) -> list[str]:
    """Return what a line may name, without suffix, the likeliest first.

    A name may hold blanks: "photo 0 (1)" is one. A last column of 1, 0 or -1, as VOC's lists per
    class have, is not part of it; only the files tell which of the two a line has.
    """
    short = re.sub(r"\s+-?[01]$", "", line)
    whole = [name.rsplit(".", 1)[0] if is_image_name(name) else name for name in (line, short)]
    return list(dict.fromkeys(whole))
