"""Write RESULTS.md from the recipes' published numbers and from what was measured here.

    python benchmarks/results.py [--check]

Two kinds of files are read: `results/*.json`, which the other programs in this folder write, and
`evaluations/*.json`, which `rmt eval --json` writes. An evaluation of a published row's model is
shown next to the published number, each in its own column. `--check` writes nothing and fails if
RESULTS.md is not up to date.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rmt.recipes import list_recipes, read

ROOT = Path(__file__).parent.parent
HEAD = """\
# Results

Written by `python benchmarks/results.py` from the recipes, `benchmarks/results/*.json` and
`benchmarks/evaluations/*.json`; edit those instead.

**Published** numbers are the authors'. They are listed with the recipe that would reproduce them
and were not measured here. **Measured** numbers are ours, each with its command and machine.
"""
#: The metrics of an evaluation that are shown; the others stay in its file.
MAIN = ("top1", "top5", "knn_top1", "mCE", "mIoU", "mAcc", "aAcc",
        "box_AP", "box_AP50", "mask_AP", "mask_AP50")  # fmt: skip


def table(rows: list[dict[str, object]]) -> list[str]:
    """Return a Markdown table with a column for each key that occurs."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return lines + ["| " + " | ".join(shown(row.get(n, "")) for n in names) + " |" for row in rows]


def shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def flat(row: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested values as one row, without lists and the numbers of each class."""
    found: dict[str, object] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key} ")
        elif not isinstance(value, list) and "/" not in key:
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
    lines = [
        "## Published",
        "",
        "Source: arXiv 2309.11523 v6, as stated in each recipe. `params_m` is in millions, and",
        "`gflops` is printed as in the paper.",
        "",
    ]
    for group, rows in groups.items():
        lines += [f"### {group}", "", *table(rows), ""]
    return lines


def evaluated(files: Iterable[Path]) -> list[str]:
    """Show the records of `rmt eval`, next to the published numbers of the model's recipe."""
    groups: dict[str, list[dict[str, object]]] = {}
    notes = []
    for file in files:
        record = json.loads(file.read_text())
        recipe, metrics = record["recipe"], record["metrics"]
        theirs = recipe["published"]["numbers"]
        row: dict[str, object] = {"model": recipe["title"], "record": f"`{file.name}`"}
        row["images"] = record["data"]["images"]
        for name in MAIN:
            if name in metrics:
                row[f"measured {name}"] = metrics[name]
            if name in theirs:
                row[f"published {name}"] = float(theirs[name])
        groups.setdefault(recipe["task"], []).append(row)
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        data, weights = record["data"]["sha256"][:12], record["checkpoint"]["sha256"][:12]
        notes.append(
            f"* `{file.name}`: `{command(record)}`; {record['date']}; {record['machine']}; "
            f"data {data}, weights {weights} (SHA-256); {versions}"
        )
    if not groups:
        return []
    lines = ["## Evaluated by `rmt eval`", ""]
    for task, rows in groups.items():
        lines += [f"### {task}", "", *table(rows), ""]
    return [*lines, *notes, ""]


def command(record: dict[str, Any]) -> str:
    """Return the command of a record of `rmt eval`."""
    parts = ["rmt", "eval", "--checkpoint", record["checkpoint"]["path"]]
    parts += ["--weights", record["checkpoint"]["weights"]]
    if record["knn"]:
        parts += ["--knn", str(record["knn"])]
    return shlex.join([*parts, *record["overrides"]])


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
            f"Full record: `{file.relative_to(ROOT)}`",
            "",
        ]
    return lines


def page() -> str:
    """Return the text of RESULTS.md."""
    evaluations, results = (
        sorted((ROOT / "benchmarks" / kind).glob("*.json")) for kind in ("evaluations", "results")
    )
    text = "\n".join([HEAD, *published(), *evaluated(evaluations), *measured(results)])
    return text.rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    target = ROOT / "RESULTS.md"
    if not args.check:
        target.write_text(page())
    elif not target.is_file() or target.read_text() != page():
        print("RESULTS.md is not up to date: python benchmarks/results.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
