"""Words that error messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return the tail of an error message: the closest known word, and all of them if few."""
    known = list(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    listed = f" (known: {', '.join(known)})" if len(known) <= 12 else ""
    return hint + listed


def printable(text: object, *, keep: str = "", limit: int = 200) -> str:
    r"""Return text from a file so that it can do nothing but be read.

    Control and formatting characters, which can move a terminal's cursor or turn its text around,
    become escapes such as ``\x1b``.

    Args:
        text: name of a tensor, class or file.
        keep: characters to leave, such as a line's end.
        limit: longest result; the rest is cut off, which an ellipsis shows.
    """
    words = str(text)
    cut = f"{words[: limit - 1]}…" if len(words) > limit else words
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in cut)


def duration(seconds: float) -> str:
    """Return a length of time in words with two figures: ``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours / 24:.1f} days"
