"""Which files of a folder are images, and which file a name means."""

import errno
import os
import sys
import unicodedata
from pathlib import Path

import pytest

from rmt.data.findings import Findings
from rmt.data.folders import find_folder, find_images, images_in, subfolders
from rmt.data.images import read_image
from rmt.data.named_files import FileFinder


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
    finder = FileFinder(tmp_path / "nothing", tmp_path / "images", tmp_path, root=tmp_path)
    assert finder.find("other.jpg") == tmp_path / "images" / "other.jpg"
    assert finder.find(name) == tmp_path / "images" / "im 0.jpg"
    assert finder.find(f"{name}.png") is None


@pytest.mark.parametrize(("stored", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_both_forms_of_unicode(stored: str, asked: str, tmp_path: Path) -> None:
    path = tmp_path / unicodedata.normalize(stored, "Größe é.jpg")
    touch(path)
    assert (
        FileFinder(tmp_path, root=tmp_path).find(unicodedata.normalize(asked, "Größe é.jpg"))
        == path
    )


def test_names_that_no_file_has(tmp_path: Path) -> None:
    finder = FileFinder(tmp_path, root=tmp_path)
    for name in ("", "x" * 5000, "a\0b.jpg", ".", "/", "\ud800.jpg", "..", "\0/../x"):
        assert finder.find(name) is None


def test_a_name_as_it_is_comes_first(tmp_path: Path) -> None:
    touch(tmp_path / "a%20b.jpg", tmp_path / "a b.jpg", tmp_path / "A.jpg", tmp_path / "a.jpg")
    finder = FileFinder(tmp_path, root=tmp_path)
    assert finder.find("a%20b.jpg") == tmp_path / "a%20b.jpg"
    assert finder.find("A.jpg") == tmp_path / "A.jpg"


OUTSIDE = (
    "../secret.png",
    "images/../../secret.png",
    "{up}/secret.png",
    "images\\..\\..\\secret.png",
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out(name: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    touch(tmp_path / "secret.png", tmp_path / "SECRET2.PNG", root / "images" / "a.png")
    finder = FileFinder(root / "images", root, root=root)
    named = name.format(up=tmp_path)
    assert finder.find(named) is None
    assert finder.find(named.replace("secret", "secret2")) is None  # nor by another case
    assert finder.find("../images/a.png") == root / "images" / "a.png"
    assert finder.find(f"{root}/images/a.png") == root / "images" / "a.png"
    touch(root / "secret.png")  # what it may mean by its end
    assert finder.find(named) == root / "secret.png"


def test_what_is_not_found_is_said_to_be_absent_or_outside(tmp_path: Path) -> None:
    touch(tmp_path / "secret.png", tmp_path / "set" / "a.png")
    finder = FileFinder(tmp_path / "set", root=tmp_path / "set")
    findings = Findings()
    for name in ("../secret.png", "../other.png", "b.png", ""):
        assert finder.find(name) is None
        finder.report(name, findings=findings, what=f"x.csv line 2, {name}")
    assert findings.describe().startswith(
        "4 left out: 1 image outside of the data set (x.csv line 2, ../secret.png; move or copy it "
        f"into {tmp_path / 'set'}, or link its folder there); 3 absent images ("
    )


def test_links_that_lead_out(tmp_path: Path) -> None:
    """Folders may lie elsewhere, and so may what tools keep; single files may not."""
    root = tmp_path / "repo" / "set"
    touch(tmp_path / "secret.png", tmp_path / "disk" / "big.png", root / "own.png")
    touch(tmp_path / "repo" / ".git" / "annex" / "objects" / "key.png")
    (root / "images").symlink_to(tmp_path / "disk")
    (root / "inside.png").symlink_to("own.png")
    (root / "outside.png").symlink_to(tmp_path / "secret.png")
    (root / "kept.png").symlink_to("../.git/annex/objects/key.png")
    (tmp_path / "disk" / "same.png").symlink_to("big.png")
    (tmp_path / "disk" / "up.png").symlink_to("../secret.png")
    finder = FileFinder(root, root=root)
    for name in ("images/big.png", "inside.png", "kept.png", "images/same.png"):
        assert finder.find(name) == root / name
    for name in ("outside.png", "images/up.png", "OUTSIDE.png", "images/UP.png"):
        assert finder.find(name) is None
    findings = Findings()
    finder.report("outside.png", findings=findings, what="x")
    assert "1 image outside of the data set" in findings.describe()


def test_the_cache_of_hugging_face(tmp_path: Path) -> None:
    """Its snapshots are links to files that lie two folders higher."""
    root = tmp_path / "datasets--me--set" / "snapshots" / "abc"
    touch(root.parents[1] / "blobs" / "0123")
    root.mkdir(parents=True)
    (root / "a.png").symlink_to("../../blobs/0123")
    assert FileFinder(root, root=root).find("a.png") == root / "a.png"


def close(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let a folder be as one without permission, which does not bind the superuser."""
    scandir = os.scandir

    def closed(path: str | Path = ".") -> object:
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)


def test_a_folder_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(*(tmp_path / name for name in ("a.jpg", "closed/b.jpg", "open/c.jpg")))
    close(monkeypatch, tmp_path / "closed")
    findings = Findings()
    assert names(images_in(tmp_path, findings), tmp_path) == ["a.jpg", "open/c.jpg"]
    assert findings.describe() == (
        f"1 left out: 1 folder that cannot be read (Permission denied: {tmp_path}/closed)"
    )
    with pytest.raises(PermissionError, match="closed"):
        images_in(tmp_path)
    found = find_images([tmp_path])
    assert names(found, tmp_path) == ["a.jpg", "closed", "open/c.jpg"]
    with pytest.raises(ValueError, match="closed cannot be read: Permission denied"):
        read_image(found[1])
    assert find_images([tmp_path / "closed"]) == [tmp_path / "closed"]
    for pattern in ("**/*.jpg", "*/*.jpg", "*/../*/[bc].jpg"):
        found = names(find_images([tmp_path / pattern]), tmp_path)
        assert {"closed", "open/c.jpg"} <= {os.path.normpath(each) for each in found}, pattern
    assert find_images([tmp_path / "a*.jpg"]) == [tmp_path / "a.jpg"]


def test_folders_that_are_too_deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No path leads to the innermost: Linux takes 4,096 bytes of one."""
    touch(tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)
    for _ in range(25):
        os.mkdir("x" * 200)
        os.chdir("x" * 200)
    findings = Findings()
    assert images_in(tmp_path, findings) == [tmp_path / "a.jpg"]
    assert "1 folder that cannot be read (File name too long: " in findings.describe()
    for _ in range(25):
        os.chdir("..")
        os.rmdir("x" * 200)


def test_more_folders_in_each_other_than_the_interpreter_has_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(sys.getrecursionlimit() + 100):
        os.mkdir("a")
        os.chdir("a")
    Path("b.jpg").touch()
    assert [path.name for path in images_in(tmp_path)] == ["b.jpg"]
    for _ in range(sys.getrecursionlimit() + 100):  # rmtree recurses
        Path("b.jpg").unlink(missing_ok=True)
        os.chdir("..")
        os.rmdir("a")


def test_an_image_that_the_system_does_not_let_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "closed" / "a.jpg", tmp_path / "b.jpg")
    stat = os.stat

    def closed(path: str | Path, **options: object) -> os.stat_result:
        if "closed/" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", closed)
    sources = [tmp_path / "closed" / "a.jpg", tmp_path / "b.jpg"]
    assert find_images(sources) == sources
    assert find_images(sources[:1]) == sources[:1]
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read: Permission denied"):
        read_image(sources[0])
