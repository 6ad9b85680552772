"""COCO JSON, as COCO itself, CVAT, Roboflow, Label Studio and most other tools lay it out."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rmt.data.findings import Findings
from rmt.data.folders import find_folder, is_hidden, note_unlisted, subfolders
from rmt.data.formats import Format, Source
from rmt.data.images import image_size
from rmt.data.named_files import FileFinder
from rmt.data.splits import SPLITS, Split, sort_by_split, split_of
from rmt.detection.annotations import Content, clean, drop_supercategories, with_classes
from rmt.detection.recipe import Data
from rmt.detection.samples import Samples
from rmt.files import write_atomically
from rmt.untrusted import read_json_file

_ROBOFLOW = "_annotations.coco.json"
_CHUNK = 1 << 20


def sign(root: Path) -> str | None:
    """Return the first JSON file that lists images and annotations."""
    found = next((path for path in _listings(root) if _looks_like_coco(path)), None)
    return None if found is None else str(found.relative_to(root) if found != root else found.name)


def read(source: Source[Data]) -> Mapping[Split, Samples]:
    """Read a JSON file per split, or a single one.

    A file belongs to the split that its folder or a word of its name says: ``train/*.json``,
    ``annotations/instances_val2017.json``. ``root`` may be such a file itself. An image name is
    tried below each folder where images may lie, the root included.

    Raises:
        ValueError: if there is no file, or several of no split, or none of a file's images is
            there.
    """
    found = [path for path in _listings(source.root) if _looks_like_coco(path)]
    files = _by_split(found, source)
    contents = {
        split: _read_file(path, _home(source.root), source.findings)
        for split, path in files.items()
    }
    for name in drop_supercategories(list(contents.values())):
        kind = "category that only groups others|categories that only group others"
        source.findings.note(kind, what=name)
    names = (own["file_name"] for content in contents.values() for own in content["images"])
    note_unlisted(map(Path, names), source.findings)
    classes = _classes(contents, source.classes)
    return {
        split: Samples(
            str(files[split]),
            with_classes(content, classes),
            [entry["id"] for entry in content["images"]],
        )
        for split, content in contents.items()
    }


def write(root: Path, split: Split, content: Content) -> Path:
    """Write ``annotations/SPLIT.json``; return the folder of the split's images."""
    folder = root / "images" / split
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content)
    path = root / "annotations" / f"{split}.json"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return folder


def _listings(root: Path) -> list[Path]:
    """Return the JSON files where COCO's may lie: the usual places first."""
    if root.is_file():
        return [root] if root.suffix.lower() == ".json" else []
    folders = [find_folder(root, "annotations"), root]
    folders += [path for path in subfolders(root) if split_of(path.name)]
    found = [path for folder in folders if folder for path in sorted(folder.glob("*.json"))]
    found += sorted(root.glob(f"*/{_ROBOFLOW}"))
    found = [path for path in dict.fromkeys(found) if path.is_file() and not is_hidden(path.name)]
    # COCO's own folder also holds captions and keypoints of the same images.
    return sorted(found, key=lambda path: not path.name.startswith("instances_"))


def _looks_like_coco(path: Path) -> bool:
    """Return whether a JSON file has lists ``images`` and ``annotations``, without parsing it."""
    wanted = {rb'"images"\s*:\s*\[', rb'"annotations"\s*:\s*\['}
    tail = b""
    with path.open("rb") as file:
        while wanted and (chunk := file.read(_CHUNK)):
            text = tail + chunk.replace(b"\0", b"")  # of UTF-16 plain letters are left
            wanted = {pattern for pattern in wanted if not re.search(pattern, text)}
            tail = text[-64:]
    return not wanted


def _by_split(found: list[Path], source: Source[Data]) -> dict[Split, Path]:
    """Return the file of each split; a single file of no split is ``train``."""
    root, places = source.root, {"annotations", source.root.name.lower()}
    if not found:
        raise ValueError(f"{root} holds no COCO file: a .json with lists images and annotations")
    named = [
        (path.stem if path.parent.name.lower() in places else path.parent.name, path)
        for path in found
    ]
    files: dict[Split, Path] = {}
    for name, path in named:
        if split := split_of(name, within=True):
            files.setdefault(split, path)
    if not files and len(found) > 1:
        listed = ", ".join(str(path.relative_to(root)) for path in found[:5])
        raise ValueError(
            f"{root} holds several COCO files, and no name says which split they are: {listed}; "
            "write train, val or test into their names"
        )
    files = {split: files[split] for split in SPLITS if split in files} or {"train": found[0]}
    rest = [path for path in found if path not in files.values()]
    kind = "annotation file not used|annotation files not used"
    source.findings.note(kind, count=len(rest), what=rest[0].name if rest else "")
    return files


def _home(root: Path) -> Path:
    """Return the folder of a data set of which the annotations may have been named."""
    home = root if root.is_dir() else root.parent
    return home.parent if home.name.lower() == "annotations" else home


def _folders(file: Path, home: Path) -> list[Path]:
    """Return where the images of a file may lie, the likeliest first."""
    stem = file.stem.removeprefix("instances_")
    split = split_of(stem, within=True)
    splits, others = sort_by_split((path.name, path) for path in subfolders(home))
    images = find_folder(home, "images", "img", "imgs", "data", "JPEGImages")
    inside = [images] if images else []
    below = sort_by_split((p.name, p) for p in subfolders(images))[0] if images else {}
    own = [part[split] for part in (splits, below) if split and split in part]
    folders = [home / stem, *(folder / stem for folder in inside), *own]
    if file.parent != home and file.parent.name.lower() != "annotations":
        images = find_folder(file.parent, "images")
        folders = [file.parent, *([images] if images else []), *folders]
    return [*folders, *inside, file.parent, home, *others]


def _read_file(path: Path, home: Path, findings: Findings) -> Content:
    files = FileFinder(*_folders(path, home), root=home)
    # Each of a million small lists would make the collector look through all before it.
    collecting = gc.isenabled()
    gc.disable()
    try:
        # As long as it is: COCO's own have hundreds of megabytes.
        content = read_json_file(path, most=path.stat().st_size)
        content = clean(content, path.name, files=files, findings=findings)
    except RecursionError as error:  # of what is wrong, and shown in a message
        raise ValueError(f"{path} is nested too deep") from error
    finally:
        if collecting:
            gc.enable()
    _turn(content, findings)
    return content


def _turn(content: Content, findings: Findings) -> None:
    """Swap the sizes of photos that are listed unrotated while their boxes lie upright.

    Label Studio writes such files. Boxes beyond the listed size that fit the turned one give it
    away; then the photos whose boxes fit both ways are looked at too.
    """
    sizes = {own["id"]: (own["width"] + 1, own["height"] + 1) for own in content["images"]}
    if not any(_beyond(entry, sizes) for entry in content["annotations"]):
        return  # as nearly always
    reach: dict[int, tuple[float, float]] = {}
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        right, bottom = reach.get(entry["image_id"], (0, 0))
        reach[entry["image_id"]] = max(right, x + w), max(bottom, y + h)

    def fits(image: Mapping[str, Any], size: tuple[int, int]) -> bool:
        right, bottom = reach.get(image["id"], (0, 0))
        return right <= size[0] + 1 and bottom <= size[1] + 1

    oblong = [
        (image, (image["width"], image["height"]))
        for image in content["images"]
        if image["width"] != image["height"]
    ]
    beyond = [image for image, size in oblong if not fits(image, size) and fits(image, size[::-1])]
    if not any(_is_turned(image) for image in beyond):
        return
    turned = [image for image, size in oblong if fits(image, size[::-1]) and _is_turned(image)]
    for image in turned:
        image["width"], image["height"] = image["height"], image["width"]
    kind = "photo listed unrotated|photos listed unrotated"
    first = Path(turned[0]["file_name"]).name
    findings.note(kind, count=len(turned), what=f"their boxes lie upright, first {first}")


def _beyond(entry: Content, sizes: Mapping[int, tuple[int, int]]) -> bool:
    """Return whether a box reaches beyond the listed size of its image."""
    x, y, w, h = entry["bbox"]
    right, bottom = sizes[entry["image_id"]]
    return x + w > right or y + h > bottom


def _is_turned(image: Mapping[str, Any]) -> bool:
    """Return whether an upright image has its listed sides the other way round."""
    try:
        return image_size(Path(image["file_name"])) == (image["height"], image["width"])
    except ValueError:
        return False  # the reader says what is wrong


def _classes(contents: Mapping[Split, Content], known: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the class list: the model's if it holds all classes, else that of the first split."""
    names = {s: [entry["name"] for entry in c["categories"]] for s, c in contents.items()}
    if known is not None and all(set(own) <= set(known) for own in names.values()):
        return known
    return (
        tuple(names["train"])
        if "train" in names
        else tuple(dict.fromkeys(name for own in names.values() for name in own))
    )


FORMAT = Format(
    name="coco",
    title="COCO",
    layout="annotations/*.json or SPLIT/_annotations.coco.json",
    sign=sign,
    read=read,
    write=write,
)
