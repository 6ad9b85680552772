"""Which files of a folder are images, and which file a name means."""

import unicodedata
from pathlib import Path

import pytest

from rmt.data.findings import Findings
from rmt.data.folders import FileFinder, find_folder, images_in, subfolders


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def names(paths: list[Path], root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in paths]


def test_what_systems_leave_behind_is_not_an_image(tmp_path: Path) -> None:
    junk = (".DS_Store", "._a.jpg", "Thumbs.db", "__MACOSX/a.jpg", ".idea/b.png", "@eaDir/c.jpg")
    touch(*(tmp_path / name for name in (*junk, "a.jpg", "deep/er/b.JPEG", "notes.txt")))
    findings = Findings()
    assert names(images_in(tmp_path, findings), tmp_path) == ["a.jpg", "deep/er/b.JPEG"]
    assert findings.describe() == ""
    assert [path.name for path in subfolders(tmp_path)] == ["deep"]


def test_files_that_may_be_images_are_counted(tmp_path: Path) -> None:
    files = ("a.jpg", "b.psd", "c.PSD", "clip.mp4", "scan", "x.xml", "list.csv")
    touch(*(tmp_path / name for name in files))
    findings = Findings()
    assert len(images_in(tmp_path, findings)) == 1
    found = findings.describe()
    assert "2 .psd files (not read, first " in found
    assert "1 .mp4 file (not read, first clip.mp4)" in found
    assert "1 file without suffix (not read, first scan)" in found
    assert "xml" not in found


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere" / "x.jpg", tmp_path / "set" / "own.jpg")
    (tmp_path / "set" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "circle").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "nowhere").symlink_to(tmp_path / "gone")
    found = images_in(tmp_path / "set")
    assert names(found, tmp_path / "set") == ["link/x.jpg", "own.jpg"]


def test_folders_are_found_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "Images").mkdir()
    assert find_folder(tmp_path, "img", "images") == tmp_path / "Images"
    (tmp_path / "images").mkdir()
    assert find_folder(tmp_path, "images") == tmp_path / "images"
    assert find_folder(tmp_path, "masks") is None


@pytest.mark.parametrize(
    "name",
    [
        "im 0.jpg",
        "images/im 0.jpg",
        "images\\im 0.jpg",
        "..\\..\\images\\im 0.jpg",
        "./im 0.jpg",
        "C:\\photos\\images\\im 0.jpg",
        "/home/someone/set/images/im 0.jpg",
        "im%200.jpg",
        "IM 0.JPG",
    ],
)
def test_names_of_other_machines(name: str, tmp_path: Path) -> None:
    touch(tmp_path / "images" / "im 0.jpg", tmp_path / "images" / "other.jpg")
    finder = FileFinder(tmp_path / "nothing", tmp_path / "images", tmp_path)
    assert finder.find("other.jpg") == tmp_path / "images" / "other.jpg"
    assert finder.find(name) == tmp_path / "images" / "im 0.jpg"
    assert finder.find(f"{name}.png") is None


@pytest.mark.parametrize(("stored", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_both_forms_of_unicode(stored: str, asked: str, tmp_path: Path) -> None:
    path = tmp_path / unicodedata.normalize(stored, "Größe é.jpg")
    touch(path)
    assert FileFinder(tmp_path).find(unicodedata.normalize(asked, "Größe é.jpg")) == path


def test_names_that_no_file_has(tmp_path: Path) -> None:
    finder = FileFinder(tmp_path)
    for name in ("", "x" * 5000, "a\0b.jpg", ".", "/"):
        assert finder.find(name) is None


def test_a_name_as_it_is_comes_first(tmp_path: Path) -> None:
    touch(tmp_path / "a%20b.jpg", tmp_path / "a b.jpg", tmp_path / "A.jpg", tmp_path / "a.jpg")
    finder = FileFinder(tmp_path)
    assert finder.find("a%20b.jpg") == tmp_path / "a%20b.jpg"
    assert finder.find("A.jpg") == tmp_path / "A.jpg"
