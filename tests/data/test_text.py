"""Text files as people's editors and systems write them."""

import subprocess
import sys
from pathlib import Path

import pytest

from rmt.data.text import read_lines, read_text

TEXT = "wand\nhimmel über\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
def test_encodings(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode(encoding))
    assert read_text(tmp_path / "a.txt") == TEXT


def test_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeff a b \r\n\r\nc\r".encode())
    assert read_lines(tmp_path / "a.txt") == ["a b", "c"]


def test_another_encoding_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.txt is not in UTF-8 .*save it as UTF-8"):
        read_text(tmp_path / "a.txt")


def test_the_locale_does_not_matter(tmp_path: Path) -> None:
    """With an ASCII locale, as services and containers have it."""
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    code = (
        "import locale, sys; from pathlib import Path; from rmt.data.text import read_lines; "
        "print(locale.getpreferredencoding(False), ascii(read_lines(Path(sys.argv[1]))))"
    )
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    path = ":".join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.txt")],
        env=environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    encoding, _, lines = done.stdout.strip().partition(" ")
    assert encoding != "utf-8"
    assert lines == r"['wand', 'himmel \xfcber']"
