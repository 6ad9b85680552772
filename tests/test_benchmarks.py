"""The programs in benchmarks/ and examples/ start: their imports and their help work."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [
    path for folder in ("benchmarks", "examples") for path in sorted((ROOT / folder).glob("*.py"))
]
PROGRAMS = [path for path in FILES if "__main__" in path.read_text()]
#: One process for all programs, because importing torch takes seconds.
SCRIPT = """
import contextlib, io, json, runpy, sys

texts = []
for path in sys.argv[1:]:
    sys.argv = [path, "--help"]
    sys.path[0] = path.rpartition("/")[0]
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as stop:
            assert stop.code == 0, path
        else:
            raise AssertionError(f"{path} ignores --help")
    texts.append(text.getvalue())
print(json.dumps(texts))
"""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_names_of_the_package_exist(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "rmt":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


@pytest.mark.slow
def test_help_of_every_program() -> None:
    command = [sys.executable, "-c", SCRIPT, *map(str, PROGRAMS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    texts = json.loads(done.stdout)
    assert len(texts) == len(PROGRAMS) > 15
    for path, text in zip(PROGRAMS, texts, strict=True):
        # Ultralytics says where it keeps its settings when it is first imported.
        assert f"usage: {path.name} " in text
