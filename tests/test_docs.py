"""The documentation is true: its code runs, its commands, keys and links exist.

Python blocks run in order, page by page, in a folder with small files of the names that they use.
Commands are parsed by the command's own parser and their options are resolved by the recipes'
schema, but nothing is trained.
"""

import argparse
import importlib
import re
import shlex
import unicodedata
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from fnmatch import fnmatch
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from PIL import Image

import rmt
import rmt_cli
from rmt import recipes
from rmt.task import TASKS, get_task
from rmt.training.fit import load_recipe

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "PAPER.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
#: Text of a Python block -> what runs instead of it, to be done in seconds. Nothing else differs.
SMALLER = {
    '"rmt_s"': '"rmt_nano"',
    "min_size=800, max_size=1333": "min_size=64, max_size=96",
    '"RMT_FPN_s.pth"': '"segmenter"',
}
SECTIONS = "model|data|optimizer|schedule|ema|trainer|augment|token_labels|inference|published"
#: Files whose names look like keys of a recipe.
FILES = {"data.yaml", "model.safetensors"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: the file.
        line: number of its first line in the page.
        language: what follows the fence; empty for output and diagrams.
        text: between the fences.
    """

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the blocks of a page, of all languages unless some are named."""
    found: list[Block] = []
    start, language = 0, ""
    lines = page.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        if not line.startswith("```"):
            continue
        if start:
            text = "\n".join(lines[start : number - 1])
            found.append(Block(page, start + 1, language, text))
            start = 0
        else:
            start, language = number, line.removeprefix("```")
    assert not start, f"{page}:{start}: a block without an end"
    return [block for block in found if not languages or block.language in languages]


def prose(page: Path) -> str:
    """Return a page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def spans(page: Path) -> list[str]:
    """Return the inline code of a page, without the line breaks in it."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)
SHELL = [block for page in PAGES for block in blocks(page, "sh")]
YAML = [block for page in PAGES for block in blocks(page, "yaml")]
PYTHON = [page for page in PAGES if blocks(page, "python")]


@every_page
def test_languages_of_the_blocks(page: Path) -> None:
    """Each block is checked below; one without a language is output or a diagram."""
    assert {block.language for block in blocks(page)} <= {"python", "sh", "yaml", ""}


# Python


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with small files of the names that the blocks use."""
    folder = tmp_path_factory.mktemp("docs")
    torch.save(rmt.create_model("rmt_nano").state_dict(), folder / "RMT_S.pth")
    rmt.create_model("rmt_nano", num_classes=4).save_pretrained(folder / "runs/small/folder")
    segmenter = rmt.create_segmenter("semantic_fpn", "rmt_nano", channels=8)
    segmenter.save_pretrained(folder / "segmenter")
    for name in ("cat.jpg", "street.jpg"):
        Image.linear_gradient("L").resize((96, 64)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page, marks=pytest.mark.slow if page.name == "deploy.md" else (), id=name_of(page)
        )
        for page in PYTHON
    ],
)
# Of torch.jit.trace, by which OpenVINO converts, and of torchvision where the modes differ.
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace(_method)?. is deprecated")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:NOTE. The nodes obtained by tracing")
def test_python_runs(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if page.name == "neighbours.md":  # a trace passes proxies, and sizes as tensors
        request.getfixturevalue("unchecked_annotations")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    for block in blocks(page, "python"):
        text = block.text
        for original, smaller in SMALLER.items():
            text = text.replace(original, smaller)
        # Line numbers of a traceback are those of the page.
        exec(compile("\n" * (block.line - 1) + text, str(page), "exec"), names)
        for name, shape in re.findall(r"^(\w+) = .*# \((\d+(?:, \d+)*)\)", text, flags=re.M):
            assert tuple(names[name].shape) == tuple(map(int, shape.split(", "))), f"{block} {name}"


def test_nothing_is_made_smaller_without_need() -> None:
    text = "\n".join(block.text for page in PYTHON for block in blocks(page, "python"))
    assert [original for original in SMALLER if original not in text] == []


# Commands


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in commands(block.text):
        match words:
            case ["rmt", *rest] | ["srun", "rmt", *rest]:
                check_rmt(rest, monkeypatch)
            case ["torchrun", *rest]:
                at = rest.index("rmt_cli")
                assert rest[at - 1] == "-m"
                check_rmt(rest[at + 1 :], monkeypatch)
            case ["make", target]:
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.M)
            case ["python", script, *_] if script.startswith("examples/"):
                assert (ROOT / script).is_file()
            case [".ci/run"]:
                assert (ROOT / ".ci/run").is_file()
            case _:
                pytest.fail(f"{block}: this test does not know the command {words[0]!r}")


@pytest.mark.parametrize("name", recipes.list_recipes())
def test_commands_of_the_recipes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in a recipe's header trains this recipe; brackets hold what may be left out."""
    header = (recipes.FOLDER / f"{name}.yaml").read_text().split("\ntask:")[0]
    (_, command) = header.replace("\n# ", " ").split(" Run: rmt ")
    words = re.sub(r"\(.*\)|[\[\]]", "", command).split()
    assert words[:2] == ["train", name]
    check_rmt(words, monkeypatch)


def commands(text: str) -> Iterator[list[str]]:
    """Yield each command of a block, split into arguments, without what it reads from a file."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line.partition(" < ")[0], comments=True):
            yield words


def check_rmt(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse a command line of ``rmt`` and resolve what it says about a recipe."""
    args = parse(words, monkeypatch)
    verb = words[0]
    if verb == "train" and args.recipe:
        load_recipe(args.recipe, args.overrides)
    elif verb == "eval":
        trained = args.checkpoint.removeprefix("runs/")
        if trained in recipes.list_recipes():
            load_recipe(trained, args.overrides)
        else:
            assert fits_a_task(args.overrides), args.overrides
    elif verb == "make-token-labels":
        assert timm.is_model(args.teacher), args.teacher


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Return what the command's own parser makes of a line, without running it."""
    seen: list[argparse.Namespace] = []
    original = argparse.ArgumentParser.parse_known_args

    def parse_only(
        self: argparse.ArgumentParser, args: Any = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        found, rest = original(self, args, namespace)
        if "run" in found:
            found.run = seen.append
        return found, rest

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_only)
        assert rmt_cli.main(words) == 0
    return seen[0]


def fits_a_task(options: list[str]) -> bool:
    """Return whether the recipes of at least one task have these keys and take these values."""
    for task in TASKS.values():
        try:
            recipes.resolve(task.recipe, {"task": task.name}, options)
        except ValueError:
            continue
        return True
    return False


@pytest.mark.parametrize("block", YAML, ids=str)
def test_yaml_is_a_recipe(block: Block) -> None:
    content = yaml.safe_load(block.text)
    recipes.resolve(get_task(content["task"]).recipe, content).schedule.check_length()


# Names in the text


@pytest.fixture(scope="module")
def keys() -> set[str]:
    """Return the dotted keys of all tasks' recipes."""
    found = set()
    for task in TASKS.values():
        content = recipes.as_dict(recipes.resolve(task.recipe, {"task": task.name}))
        for key, value in content.items():
            found |= {f"{key}.{name}" for name in value} if isinstance(value, dict) else {key}
    return found


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Return the options of each verb of the command and, without a verb, of the command itself."""
    verbs = re.findall(r"^    (\S+)", help_of([]), flags=re.M)
    assert "train" in verbs
    helps = {verb: help_of([verb]) for verb in verbs} | {"": help_of([])}
    return {verb: set(re.findall(r"--[\w.-]+", text)) for verb, text in helps.items()}


def help_of(words: list[str]) -> str:
    with redirect_stdout(StringIO()) as text, pytest.raises(SystemExit):
        rmt_cli.main([*words, "--help"])
    return text.getvalue()


@every_page
def test_options_in_the_text(page: Path, keys: set[str], options: dict[str, set[str]]) -> None:
    """An option in inline code is one of its command, or a key of a recipe with a fitting value."""
    for span in spans(page):
        words = span.split()
        if words[0] == "rmt" and words[1:] and not words[1].startswith("-"):
            assert words[1] in options, f"{span!r}: no command of that name"
            own = options[words[1]]
        elif words[0] == "rmt" or span.startswith("--"):
            own = set().union(*options.values())
        else:
            continue
        names = [word.split("=")[0] for word in words if word.startswith("--")]
        unknown = [n for n in names if n not in own and n.removeprefix("--") not in keys]
        assert not unknown, f"{span!r}: {unknown}"
        if re.match(r"--\w+\.\w+ ", span):  # a key with a value
            assert fits_a_task(shlex.split(span)), span


@every_page
def test_keys_in_the_text(page: Path, keys: set[str]) -> None:
    for span in spans(page):
        key = re.fullmatch(rf"((?:{SECTIONS})\.\w+)(: .*)?", span)
        if key and key[1] not in FILES:
            assert key[1] in keys, span


@every_page
def test_recipes_in_the_text(page: Path) -> None:
    known = recipes.list_recipes()
    for span in spans(page):
        if re.fullmatch(r"(imagenet|coco|ade20k|small)/[\w*]+", span):
            assert any(fnmatch(name, span) for name in known), span


@every_page
def test_python_names_in_the_text(page: Path) -> None:
    directives = re.findall(r"^::: (\S+)$", page.read_text(), flags=re.M)
    for span in [*spans(page), *directives]:
        if name := re.match(r"rmt(?:\.[A-Za-z_]\w*)+", span):
            assert resolved(name[0]) is not None, span


def resolved(name: str) -> object:
    """Return the module, class or function of a dotted name."""
    parts = name.split(".")
    found: Any = rmt
    for i, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:i]))
        found = getattr(found, part)
    return found


@every_page
def test_files_in_the_text(page: Path) -> None:
    """Files of this repository that the text names are there; of tests also the function."""
    for span in spans(page):
        if path := re.search(
            r"(?:^|python )((?:tests|benchmarks|docs|examples|src)/[\w./-]*)", span
        ):
            assert (ROOT / path[1]).exists(), span
        if test := re.fullmatch(r"(?:tests/)?((?:\w+/)?test_\w+\.py)(?:::(\w+))?", span):
            file = ROOT / "tests" / test[1]
            assert file.is_file(), span
            assert f"def {test[2] or ''}" in file.read_text(), span


# Links


@every_page
def test_links(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        at = page.parent / file if file else page
        assert at.exists(), target
        if page.parent == ROOT / "docs":  # the site has no other files
            assert at.resolve().is_relative_to(ROOT / "docs"), target
        if anchor:
            assert anchor in anchors(at), target


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Python-Markdown makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), flags=re.M):
        plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
        plain = re.sub(r"[^\w\s-]", "", plain).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", plain))
    return found


def test_every_page_is_in_the_menu() -> None:
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = [file for entry in menu for file in entry.values()]
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
