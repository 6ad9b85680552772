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
