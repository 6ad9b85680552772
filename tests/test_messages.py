"""Words of messages: what is near, and what may be shown of a file."""

import pytest

from rmt.messages import did_you_mean, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("stages.0.blocks.1", "stages.0.blocks.1"),
        ("Bürger's cat 猫", "Bürger's cat 猫"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("a\rb\nc\td", r"a\rb\nc\td"),
        ("\x9b2J", r"\x9b2J"),  # the same as ESC [ for some terminals
        ("abc\u202ecba", r"abc\u202ecba"),  # turns the direction of writing
        ("a\udc80b", r"a\udc80b"),  # a file name that is not UTF-8
        ("a\x00b\x7f", r"a\x00b\x7f"),
        (3, "3"),
    ],
)
def test_nothing_but_letters_reaches_the_terminal(text: object, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).isprintable()


def test_lines_may_stay_and_length_is_bounded() -> None:
    assert printable("a\n\x1bb", keep="\n") == "a\n\\x1bb"
    assert len(printable("x" * 10_000)) == 200
    assert printable("x" * 10_000).endswith("x…")


def test_the_nearest_word() -> None:
    assert did_you_mean("min_sise", ["min_size", "max_size"]).startswith(
        "; did you mean 'min_size'"
    )
