"""Each cell of the table in docs/data.md holds, and the table has no others."""

from pathlib import Path

import pytest

from peculiarities import CELLS, COLUMNS, Cell, classes_and_boxes, every_format, masks

assert all((every_format, classes_and_boxes, masks))  # their import fills CELLS

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.mark.parametrize("cell", CELLS, ids=[f"{c.column}-{c.run.__name__}" for c in CELLS])
def test_cell(cell: Cell, tmp_path: Path) -> None:
    if cell.outcome == "refused":
        with pytest.raises(ValueError, match=r"\w+ \w+") as caught:
            cell.run(cell.column, tmp_path)
        assert cell.words in str(caught.value)
        return
    splits = cell.run(cell.column, tmp_path)
    found = splits.describe()
    assert cell.words in found
    assert bool(splits.findings.left_out) == (cell.outcome == "left out"), found
    if cell.outcome == "counted":
        assert splits.findings.describe()
    if cell.outcome == "left out":
        assert f"{splits.findings.left_out} left out: " in found


def test_the_page_has_these_cells() -> None:
    expected: dict[str, dict[str, str]] = {}
    for cell in CELLS:
        assert expected.setdefault(cell.row, {}).setdefault(cell.column, cell.outcome) == (
            cell.outcome
        )
    table: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        words = [word.strip() for word in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            columns = []
        elif words[1:] and set(words[1:]) <= set(COLUMNS):
            columns = words[1:]
        elif columns and not set(words[0]) <= set("-: "):
            cells = {c: w for c, w in zip(columns, words[1:], strict=True) if w != "–"}
            table.setdefault(words[0], {}).update(cells)
    assert table == expected
