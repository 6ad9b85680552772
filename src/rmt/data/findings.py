"""What a data set holds that is not used: each thing counted, faults named, too many refused."""

from __future__ import annotations

import logging
from functools import cache

from rmt.messages import printable

log = logging.getLogger(__name__)
#: What is named may come from a file, and be of any length.
_LONGEST = 1000


class Findings:
    """What reading a data set left out, and what its reader should know.

    A *fault* is something wrong: a file that is gone, an annotation that makes no sense. It is left
    out and named in the log, up to a limit. A *note* is something ordinary that is worth a number:
    images without objects, files of other types.

    Args:
        limit: faults tolerated, ``data.max_bad_samples``.
        root: of the data set.
    """

    def __init__(self, limit: int = 100, root: str = "") -> None:
        self.limit, self.root = limit, root
        # Kind -> what the first one is, and how many there are.
        self._faults: dict[str, tuple[str, int]] = {}
        self._notes: dict[str, tuple[str, int]] = {}

    @property
    def left_out(self) -> int:
        """Number of faults."""
        return sum(count for _, count in self._faults.values())

    def fault(self, kind: str, what: str) -> None:
        """Leave something out.

        Args:
            kind: what is wrong, for one and for many: ``"absent image|absent images"``.
            what: names the thing, and says more where ``kind`` does not say all.

        Raises:
            ValueError: if these are more than the limit.
        """
        what = printable(what, limit=_LONGEST)
        first, count = self._faults.get(kind, (what, 0))
        self._faults[kind] = first, count + 1
        _name_once(self.root, f"left out: {kind.partition('|')[0]}: {what}")
        if self.left_out > self.limit:
            raise ValueError(
                f"more than data.max_bad_samples={self.limit} files and annotations cannot be "
                f"used: {self._listed()}"
            )

    def note(self, kind: str, *, count: int = 1, what: str = "") -> None:
        """Count something that is not wrong.

        Args:
            kind: what it is, as in :meth:`fault`.
            count: how many there are.
            what: says more, and names one or all.
        """
        if count:
            first, so_far = self._notes.get(kind, (printable(what, limit=_LONGEST), 0))
            self._notes[kind] = first, so_far + count

    def describe(self) -> str:
        """Return all of it as the tail of a sentence, empty if there is nothing."""
        notes = [_counted(kind, count, what) for kind, (what, count) in self._notes.items()]
        faults = [f"{self.left_out} left out: {self._listed()}"] if self._faults else []
        return ", ".join(notes + faults)

    def _listed(self) -> str:
        """Return the faults, the first of each kind by its name."""
        return "; ".join(
            _counted(kind, count, first + ", ..." if count > 1 else first)
            for kind, (first, count) in self._faults.items()
        )


def _counted(kind: str, count: int, what: str) -> str:
    one, _, many = kind.partition("|")
    return f"{count} {one if count == 1 else many or one}" + (f" ({what})" if what else "")


@cache
def _name_once(root: str, message: str) -> None:
    """Log a message once per process and data set, however often a run opens it."""
    log.warning("%s", message)
