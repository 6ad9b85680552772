"""Pascal VOC: one XML file per image, as VOC itself and most drawing tools write it.

VOC counts pixels from 1 and includes the last one; its boxes are taken as they are, corners in
pixels, as the tools mean them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rmt.data.classes import class_list, class_name
from rmt.data.findings import Findings
from rmt.data.folders import (
    files_below,
    find_folder,
    is_image_name,
    note_unlisted,
    note_unreadable,
    subfolders,
)
from rmt.data.formats import Format, Source
from rmt.data.images import image_size, is_bomb
from rmt.data.named_files import FileFinder
from rmt.data.splits import SPLITS, Split, sort_by_split
from rmt.data.text import read_lines
from rmt.data.voc_lists import find_lists, names_of
from rmt.detection.annotations import Content, assemble
from rmt.detection.recipe import Data
from rmt.detection.rle import is_number
from rmt.detection.samples import Samples
from rmt.files import check_file

#: Name, box (x, y, w, h), and whether it is difficult: such ones are not scored by VOC.
Object = tuple[str, list[float], bool]
#: What reading an XML file raises that is broken, or of another encoding than it says.
_BROKEN = (ElementTree.ParseError, LookupError, ValueError, OSError)


@dataclass(frozen=True)
class Parsed:
    """What an XML file says.

    Attributes:
        path: of the file.
        image: ``file_name``, absolute, ``height`` and ``width``.
        objects: on the image.
    """

    path: Path
    image: Content
    objects: Sequence[Object]


def sign(root: Path) -> str | None:
    """Return the first XML file of an annotation, in the root or up to two folders deeper."""
    if not root.is_dir():
        return None
    for folder in (
        root,
        *subfolders(root),
        *(p for own in subfolders(root) for p in subfolders(own)),
    ):
        for path in sorted(folder.glob("[!.]*.xml")):
            if _is_annotation(path):
                return str(path.relative_to(root))
    return None


def read(source: Source[Data]) -> Mapping[Split, Samples]:
    """Read the XML files that ``ImageSets/Main/SPLIT.txt`` names, or those in a folder per split.

    Class names stand in ``classes.txt``, one per line; without it they are those that occur in any
    split, in alphabetical order.

    Raises:
        ValueError: if there is no XML file that can be used.
    """
    root, findings = source.root, source.findings
    images = _Images(root)
    paths = _files(root, findings)
    files = {
        split: [each for path in own if (each := _parse(path, images, findings))]
        for split, own in paths.items()
    }
    if not any(files.values()):
        raise ValueError(f"{root} holds no XML file of an image that can be used")
    listing = root / "classes.txt"
    listed = list(map(class_name, read_lines(listing))) if listing.is_file() else []
    occurring = {own for each in files.values() for one in each for own, *_ in one.objects}
    if not listed:  # a list may lack a class that others have
        used = {path for own in paths.values() for path in own}
        occurring |= {name for path in _below(root) if path not in used for name in _names(path)}
    classes = class_list(dict.fromkeys(listed) or sorted(occurring), source.classes)
    if not (root / "ImageSets" / "Main").is_dir():  # lists leave out on purpose
        named = (Path(one.image["file_name"]) for parsed in files.values() for one in parsed)
        note_unlisted(named, findings)
    found: dict[Split, Samples] = {}
    for split, parsed in files.items():
        if parsed:
            content = _content(parsed, classes, findings)
            found[split] = Samples(str(root), content, [own["id"] for own in content["images"]])
    return found


def read_files(paths: Sequence[Path]) -> Content:
    """Return the images and objects of some XML files in COCO's form.

    Raises:
        ValueError: if more than a hundred things in them cannot be used.
    """
    findings = Findings()
    homes = {path.parent: _Images(path.parent) for path in paths}
    parsed = [each for path in paths if (each := _parse(path, homes[path.parent], findings))]
    return _content(parsed, sorted({name for one in parsed for name, *_ in one.objects}), findings)


def write(root: Path, split: Split, content: Content) -> Path:
    """Write an XML file per image and ``classes.txt``; masks and crowds are lost.

    Returns:
        The folder that the split's images belong into, beside the XML files.
    """
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    (root / "classes.txt").write_text("".join(f"{n}\n" for n in names.values()), encoding="utf-8")
    objects: dict[int, list[Content]] = {}
    for entry in content["annotations"]:
        if not entry["iscrowd"]:
            objects.setdefault(entry["image_id"], []).append(entry)
    for image in content["images"]:
        tree = ElementTree.Element("annotation")
        _add(tree, "filename", Path(image["file_name"]).name)
        size = ElementTree.SubElement(tree, "size")
        for key, value in (("width", image["width"]), ("height", image["height"]), ("depth", 3)):
            _add(size, key, value)
        for entry in objects.get(image["id"], ()):
            thing = ElementTree.SubElement(tree, "object")
            _add(thing, "name", names[entry["category_id"]])
            if entry.get("ignore"):
                _add(thing, "difficult", 1)
            x, y, w, h = entry["bbox"]
            corners = ElementTree.SubElement(thing, "bndbox")
            for key, value in (("xmin", x), ("ymin", y), ("xmax", x + w), ("ymax", y + h)):
                _add(corners, key, value)
        path = folder / f"{Path(image['file_name']).stem}.xml"
        ElementTree.ElementTree(tree).write(path, encoding="utf-8")
    return folder


def _files(root: Path, findings: Findings) -> dict[Split, list[Path]]:
    """Return the XML files of each split; of an undivided set all are ``train``."""
    main = root / "ImageSets" / "Main"
    if main.is_dir() and (lists := find_lists(main)):
        listed = {split: _listed(path, root, findings, split) for split, path in lists.items()}
        return {split: own for split, own in listed.items() if own}
    take = note_unreadable(findings)
    folders, others = sort_by_split((path.name, path) for path in subfolders(root))
    found = {
        split: own for split in SPLITS if split in folders and (own := _below(folders[split], take))
    }
    if not found:
        return {"train": _below(root, take)}
    for folder in others:
        if rest := _below(folder, take):
            what = f"{folder.name} is not a split"
            findings.note("XML file not used|XML files not used", count=len(rest), what=what)
    return found


def _listed(listing: Path, root: Path, findings: Findings, split: Split) -> list[Path]:
    """Return the XML files that a list names; none if a test split has no annotations."""
    finder = FileFinder(find_folder(root, "Annotations") or root, root=root)
    names = {line: [f"{name}.xml" for name in names_of(line)] for line in read_lines(listing)}
    found = {line: finder.find(*own) for line, own in names.items()}
    files = [path for path in found.values() if path is not None]
    if split == "test" and not files:
        what = f"{listing.name} names no image with an XML file"
        findings.note("image not used|images not used", count=len(found), what=what)
        return []
    for line in (line for line, path in found.items() if path is None):
        what = f"{line} of {listing.name}"
        finder.report(*names[line], findings=findings, what=what, thing="XML file")
    return files


def _below(folder: Path, unreadable: Callable[[str, OSError], object] | None = None) -> list[Path]:
    found = files_below(folder, unreadable)
    return sorted(Path(path) for path in found if path.lower().endswith(".xml"))


def _content(parsed: Sequence[Parsed], classes: Sequence[str], findings: Findings) -> Content:
    """Return files as one data set in COCO's form."""
    at = {name: i for i, name in enumerate(classes)}
    objects = []
    for number, one in enumerate(parsed, start=1):
        for name, box, difficult in one.objects:
            if name not in at:
                what = f"{one.path.name}: {name!r}"
                findings.fault("object of no listed class|objects of no listed class", what)
                continue
            entry = {"image_id": number, "label": at[name], "bbox": box}
            objects.append(entry | ({"ignore": 1} if difficult else {}))
    return assemble([one.image for one in parsed], objects, classes)


def _parse(path: Path, images: _Images, findings: Findings) -> Parsed | None:
    """Return what an XML file says, or None, named, if it cannot be used."""
    try:
        check_file(path)
        tree = ElementTree.parse(path).getroot()
    except _BROKEN as error:
        findings.fault("broken XML file|broken XML files", f"{path}: {error}")
        return None
    if tree.find(".//object") is None and tree.find("filename") is None:
        findings.note("XML file of something else|XML files of something else", what=path.name)
        return None
    image = images.find(path, tree.findtext("filename"), findings)
    if image is None:
        return None
    try:
        width, height = _size(tree, image)
    except ValueError as error:
        findings.fault("unreadable image|unreadable images", str(error))
        return None
    objects = []
    for i, entry in enumerate(tree.iter("object")):
        try:
            objects.append(_object(entry))
        except ValueError as error:
            kind = "object that makes no sense|objects that make no sense"
            findings.fault(kind, f"{path}: object {i} {error}")
    size = {"height": height, "width": width}
    return Parsed(path, {"file_name": str(image), **size}, objects)


def _names(path: Path) -> set[str]:
    """Return the classes that an XML file names, none if it is broken."""
    try:
        check_file(path)
        tree = ElementTree.parse(path)
    except _BROKEN:
        return set()
    names = {class_name(entry.findtext("name") or "") for entry in tree.iter("object")}
    return names - {""}


def _size(tree: ElementTree.Element, image: Path) -> tuple[int, int]:
    """Return width and height in pixels; where the file does not tell, the image does."""
    sides = []
    for side in ("width", "height"):
        try:
            sides.append(int(float(tree.findtext(f"size/{side}") or 0)))
        except (ValueError, OverflowError):
            sides.append(0)
    size = sides[0], sides[1]
    return size if min(size) > 0 and not is_bomb(size) else image_size(image)


def _object(entry: ElementTree.Element) -> Object:
    name = class_name(entry.findtext("name") or "")
    if not name:
        raise ValueError("has no <name>")
    corners = []
    for corner in ("xmin", "ymin", "xmax", "ymax"):
        text = entry.findtext(f"bndbox/{corner}")
        try:
            corners.append(float(text or ""))
        except ValueError as error:
            raise ValueError(f"has {corner} {text!r}, which is not a number") from error
    if not all(map(is_number, corners)):
        raise ValueError(f"has corners {corners}")
    x0, y0, x1, y1 = corners
    difficult = (entry.findtext("difficult") or "").strip().lower() in ("1", "true")
    return name, [x0, y0, x1 - x0, y1 - y0], difficult


class _Images:
    """Finds the image that an XML file means: beside it, in JPEGImages/ or in images/."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._annotations = find_folder(root, "Annotations")
        self._finders: dict[Path, tuple[list[Path], FileFinder]] = {}
        self._stems: dict[Path, dict[str, Path]] = {}

    def find(self, path: Path, named: str | None, findings: Findings) -> Path | None:
        """Return the image of that name, or else the one called as the XML file is.

        None if neither is there, which ``findings`` takes.
        """
        if path.parent not in self._finders:
            folders = self._folders(path.parent)
            self._finders[path.parent] = folders, FileFinder(*folders, root=self._root)
        folders, finder = self._finders[path.parent]
        name = (named or "").strip()
        if found := finder.find(name):
            return found
        stems = (self._by_stem(folder).get(path.stem) for folder in folders)
        if found := next(filter(None, stems), None):
            return found
        finder.report(name, findings=findings, what=f"{named!r} of {path}")
        return None

    def _by_stem(self, folder: Path) -> dict[str, Path]:
        """Return the images in a folder by their names without suffix."""
        if folder not in self._stems:
            inside = sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []
            self._stems[folder] = {p.stem: p for p in inside if is_image_name(p.name)}
        return self._stems[folder]

    def _folders(self, parent: Path) -> list[Path]:
        homes = (parent.parent, self._root)
        images = [own for home in homes if (own := find_folder(home, "JPEGImages", "images"))]
        folders = [parent, *images]
        if self._annotations and parent.is_relative_to(self._annotations):
            inside = parent.relative_to(self._annotations)  # sub-folders at the same places
            folders += [folder / inside for folder in images]
        return folders


def _is_annotation(path: Path) -> bool:
    try:
        check_file(path)
        return next(iter(ElementTree.iterparse(path, events=("start",))))[1].tag == "annotation"
    except (StopIteration, *_BROKEN):
        return False


def _add(parent: ElementTree.Element, tag: str, value: Any) -> None:
    ElementTree.SubElement(parent, tag).text = str(value)


FORMAT = Format(
    name="voc",
    title="Pascal VOC",
    layout="an .xml file per image",
    sign=sign,
    read=read,
    write=write,
)
