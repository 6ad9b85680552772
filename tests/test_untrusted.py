"""Values of files are read within limits, and a wrong one is named with its place."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from limits import memory_limit, time_limit
from rmt.untrusted import Field, read_json, read_json_file, read_yaml

VALUES = {"a": {"b": [1, "x", None, True, 0.5]}}


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda f: f["c"], r"^f\.json has no entry 'c'"),
        (lambda f: f["a"]["d"], r"^f\.json: a has no entry 'd'"),
        (lambda f: f["a"].items(), r"a is a dict of 1; expected a list"),
        (lambda f: f["a"].text(), r"a is a dict of 1; expected text"),
        (lambda f: f["a"]["b"].mapping(), r"a\.b is a list of 5; expected a mapping"),
        (lambda f: f["a"]["b"].items()[0].text(), r"a\.b\.0 is 1; expected text"),
        (lambda f: f["a"]["b"].items()[1].number(), r"a\.b\.1 is 'x'; expected a number"),
        (lambda f: f["a"]["b"].items()[2].mapping(), r"a\.b\.2 is None; expected a mapping"),
        (lambda f: f["a"]["b"].items()[3].whole(least=0), r"a\.b\.3 is True; expected a whole"),
        (lambda f: f["a"]["b"].items()[3].number(), r"a\.b\.3 is True; expected a number"),
        (lambda f: f["a"]["b"].items()[0].flag(), r"a\.b\.0 is 1; expected true or false"),
        (lambda f: f["a"]["b"].items()[0].whole(least=2, most=9), r"is 1; .* from 2 to 9"),
        (lambda f: f["a"]["b"].items()[1].one_of("y", "z"), r"is 'x'; expected 'y' or 'z'"),
    ],
)
def test_a_wrong_value_is_named(read: Callable[[Field], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(Field.of(VALUES, "f.json"))


def test_right_values() -> None:
    field = Field.of(VALUES, "f.json")
    one, text, _, true, half = field["a"]["b"].items()
    assert (one.whole(least=0), text.text(), true.flag(), half.number()) == (1, "x", True, 0.5)
    assert field.get("gone", 7).value == 7
    assert Field.of({"a": None}, "f").get("a", 7).value == 7


def test_a_hint_ends_the_message() -> None:
    with pytest.raises(ValueError, match=r"^f: a is 1; expected text\. Do this$"):
        Field.of({"a": 1}, "f", hint="Do this")["a"].text()


def deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


def shared(levels: int) -> object:
    """Return a few lists that contain each other in a number of ways that nobody can count."""
    value: list = [1]
    for _ in range(levels):
        value = [value, value]
    return value


def endless() -> object:
    value: list = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (deep(100), "nested more than 32 levels"),
        (endless(), "nested more than 32 levels"),
        (shared(30), "more than 100,000 values"),
        ({"a": {1: 2}}, r"a has a key of type int"),
        ({"a": {(): 2}}, r"a has a key of type tuple"),
        ({"a": {"x\x1b[2J": b""}}, r"a\.x\\x1b\[2J is a bytes; expected a plain value"),
        ({"a": float("nan")}, "a is nan; expected a finite number"),
        ([1, float("-inf")], r"1 is -inf"),
        ({"a": 10**5000}, "a is a whole number of 16610 bits"),
        ({"a": {1, 2}}, "a is a set"),
    ],
)
def test_what_is_no_plain_value(value: object, message: str) -> None:
    with memory_limit(500), time_limit(30), pytest.raises(ValueError, match=message):
        Field.of(value, "f.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "f.json is not JSON"),
        ("", "f.json is not JSON"),
        (b"\xff\xfe", "f.json is not JSON"),
        ("[" * 100_000, "f.json is not JSON .nested too deep"),
        ("1" * 5000, "f.json is not JSON"),
        ('"' + "x" * 2**24 + '"', "f.json is longer than 16,777,216 characters"),
    ],
)
def test_what_is_no_json(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_json(text, "f.json")


def test_a_long_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    with path.open("wb") as file:
        file.truncate(10**10)
    with memory_limit(200), pytest.raises(ValueError, match=r"f\.json is longer than"):
        read_json_file(path)


def test_json_with_a_byte_order_mark() -> None:
    assert read_json(json.dumps(VALUES).encode("utf-8-sig"), "f.json") == VALUES


def test_json_in_other_encodings() -> None:
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-32-be"):
        assert read_json(json.dumps(VALUES).encode(encoding), "f.json") == VALUES


def bomb(line: str) -> str:
    """Return YAML of ten levels, each with ten references to the one before."""
    lines = ["x0: &x0 {a: 1}"]
    lines += [f"x{i}: &x{i} {line % ', '.join([f'*x{i - 1}'] * 10)}" for i in range(1, 10)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb("[%s]"), "f.yaml holds more than 100,000 values"),
        (bomb("{<<: [%s]}"), "f.yaml holds more than 100,000 values"),
        (bomb("{a: [%s]}").replace("{a: 1}", "[1]"), "f.yaml holds more than 100,000 values"),
        ("a: &a [*a]", "f.yaml is nested more than 32 levels"),
        ("[" * 40 + "]" * 40, "f.yaml is nested more than 32 levels"),
        ("[" * 100_000, "f.yaml is not YAML .nested too deep"),
        ("- " * 100_000 + "x", "f.yaml is not YAML .nested too deep"),
        ("a: [", "f.yaml is not YAML: while parsing"),
        ("a: b: c", "f.yaml is not YAML: mapping values are not allowed"),
        ("a: !!python/name:os.system", "f.yaml is not YAML: could not determine a constructor"),
        ("--- a\n--- b", "f.yaml is not YAML: expected a single document"),
        ("{[1]: 2}", "f.yaml is not YAML: while constructing a mapping"),
        ("a: 2020-99-99", "f.yaml is not YAML: month must be in 1..12"),
        ("a: !!int ''", "f.yaml is not YAML"),
        ("a: !!bool x", "f.yaml is not YAML"),
        ("a: !!timestamp x", "f.yaml is not YAML"),
        ("a: " + "1" * 5000, "f.yaml is not YAML: Exceeds the limit"),
        ("a: \x1b[2J", r"f.yaml is not YAML: unacceptable character"),
        ("a: " + "x" * 2**20, "f.yaml is longer than 1,048,576 characters"),
    ],
)
def test_what_is_no_yaml(text: str, message: str) -> None:
    with memory_limit(500), time_limit(60), pytest.raises(ValueError, match=message) as caught:
        read_yaml(text, "f.yaml")
    assert "\x1b" not in str(caught.value)


def test_yaml() -> None:
    assert read_yaml("", "f.yaml") is None
    assert read_yaml("a: &a [1, x]\nb: *a\n0: 1.5", "f.yaml") == {
        "a": [1, "x"],
        "b": [1, "x"],
        0: 1.5,
    }
    names = "\n".join(f"  {i}: class number {i}" for i in range(21_841))
    assert len(read_yaml(f"names:\n{names}", "f.yaml")["names"]) == 21_841
