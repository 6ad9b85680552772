"""The record of a measurement, as benchmarks/results.py reads it."""

import datetime
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
#: Packages whose module has another name.
MODULES = {"pillow": "PIL"}


def write_record(
    name: str,
    *,
    what: str,
    command: str,
    machine: str,
    notes: Sequence[str],
    packages: Sequence[str],
    rows: Any,
) -> Path:
    """Write what was measured to ``results/NAME.json``, with the date and the versions.

    Args:
        name: of the file, without suffix.
        what: was measured.
        command: that repeats it.
        machine: that it ran on.
        notes: further circumstances; empty ones are left out.
        packages: whose versions matter.
        rows: the numbers.
    """
    record = {
        "what": what,
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "note": "; ".join(filter(None, notes)),
        "versions": {
            package: importlib.import_module(MODULES.get(package, package)).__version__
            for package in packages
        },
        "rows": rows,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
