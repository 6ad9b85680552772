"""Every number of a recipe has a range, and what lies outside is refused with it."""

import dataclasses
import typing
from typing import Any

import pytest

from rmt.recipes import resolve
from rmt.recipes.schema import Range, Section
from rmt.task import TASKS, get_task


def sections(task: str) -> list[type[Section]]:
    hints = typing.get_type_hints(get_task(task).recipe)
    return [kind for kind in hints.values() if dataclasses.is_dataclass(kind)]


@pytest.mark.parametrize("task", TASKS)
def test_every_number_has_a_range(task: str) -> None:
    """But means of channels and published numbers, which may be any."""
    for section in sections(task):
        hints = typing.get_type_hints(section)
        for field in dataclasses.fields(section):
            kinds = {hints[field.name], *typing.get_args(hints[field.name])}
            if kinds & {int, float} and field.name not in ("mean", "numbers"):
                assert isinstance(field.metadata.get("range"), Range), (section, field.name)


@pytest.mark.parametrize("task", TASKS)
def test_what_lies_outside_is_refused(task: str) -> None:
    for section in sections(task):
        for field in dataclasses.fields(section):
            allowed = field.metadata.get("range")
            if allowed is None:
                continue
            default = field.default
            shape = len(default) if isinstance(default, tuple) and default else 0
            for bad in outside(allowed):
                whole = isinstance(default, int) or default is None or default in ((), "auto")
                value: Any = int(bad) if whole and not shape else float(bad)
                if shape:
                    value = [type(default[0])(bad)] * shape
                elif default == ():
                    value = [int(bad)]
                content = {"task": task, section.key: {field.name: value}}
                with pytest.raises(ValueError, match=rf"{section.key}\.{field.name} is .*must be"):
                    resolve(get_task(task).recipe, content)


def outside(allowed: Range) -> list[float]:
    found = []
    if allowed.low > -float("inf"):
        found.append(allowed.low if allowed.above and allowed.low == 0 else allowed.low - 1)
    if allowed.high < float("inf"):
        found.append(allowed.high + 1)
    return found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"augment": {"scale": [0.9, 0.1]}}, r"augment\.scale is 0\.9, 0\.1; give the smallest"),
        (
            {"augment": {"mixup": 0.1}, "data": {"batch_size": 1}},
            r"data\.batch_size is 1, but Mixup and CutMix mix pairs",
        ),
        (
            {"trainer": {"accumulate_grad_batches": 2, "global_batch_size": 8}},
            "accumulate_grad_batches is 2 and",
        ),
    ],
)
def test_fields_that_do_not_fit_together(content: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(get_task("classification").recipe, {"task": "classification"} | content)


def test_ranges_read_as_english() -> None:
    assert str(Range(0, 1)) == "at least 0 and at most 1"
    assert str(Range(0, above=True)) == "greater than 0"
    assert str(Range(high=3, below=True)) == "less than 3"
