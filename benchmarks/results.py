"""Write RESULTS.md from the recipes' published numbers and from what was measured here.

    python benchmarks/results.py [--check]

The two never share a table. `--check` writes nothing and fails if RESULTS.md is not up to date.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from rmt.recipes import list_recipes, read

ROOT = Path(__file__).parent.parent
HEAD = """\
# Results

Written by `python benchmarks/results.py`; edit the recipes and `benchmarks/results/*.json` instead.

**Published** numbers are the authors': they come with the recipe that would reproduce them and were
not measured here. **Measured** numbers are ours, each with its command and machine.
"""


def table(rows: list[dict[str, object]]) -> list[str]:
    """Return a Markdown table with a column for each key that occurs."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(shown(row.get(n, "")) for n in names) + " |" for row in rows]


def shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def flat(row: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested numbers and words as one row; lists (histories, samples) are left out."""
    found: dict[str, object] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key} ")
        elif not isinstance(value, list):
            found[prefix + key] = value
    return found


def published() -> list[str]:
    groups: dict[str, list[dict[str, object]]] = {}
    for name in list_recipes():
        content = read(name)
        numbers = content.get("published", {}).get("numbers")
        if numbers:
            row = {"recipe": f"`{name}`", "model": content["title"], **numbers}
            groups.setdefault(name.split("/")[0], []).append(row)
    lines = ["## Published", "", "Source: arXiv 2309.11523 v6, as each recipe says.", ""]
    for group, rows in groups.items():
        lines += [f"### {group}", "", *table(rows), ""]
    return lines


def measured(files: Iterable[Path]) -> list[str]:
    lines = ["## Measured", ""]
    for file in files:
        content = json.loads(file.read_text())
        rows = content["rows"]
        if isinstance(rows, dict):
            rows = [{"": name, **row} for name, row in rows.items()]
        lines += [f"### {content['what']}", "", f"`{content['command']}`", ""]
        facts = [content.get("date", ""), content.get("machine", ""), content.get("note", "")]
        versions = [f"{name} {version}" for name, version in content.get("versions", {}).items()]
        lines += ["; ".join(filter(None, [*facts, *versions])), ""]
        lines += [
            *table([flat(row) for row in rows]),
            "",
            f"All of it: `{file.relative_to(ROOT)}`",
            "",
        ]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    text = "\n".join([HEAD, *published(), *measured(files)]).rstrip() + "\n"
    target = ROOT / "RESULTS.md"
    if not args.check:
        target.write_text(text)
    elif not target.is_file() or target.read_text() != text:
        print("RESULTS.md is not up to date: python benchmarks/results.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
