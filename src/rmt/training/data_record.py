"""Which images a run trains on and which it holds out, so that a resumed run notices changes."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from rmt.data.classes import few
from rmt.data.splits import Samples, Splits
from rmt.files import write_atomically

#: Sample's name relative to the data's root -> a short digest of its labels.
Names = dict[str, str]


@dataclass(frozen=True)
class DataRecord:
    """The images of a run's splits by name, with what they are labelled as.

    Attributes:
        classes: class names.
        held_out: whether the validation images were taken from the training images.
        splits: names of each split.
        root: absolute path of the data; empty if they have none.
    """

    classes: tuple[str, ...]
    held_out: bool
    splits: Mapping[str, Names]
    root: str = ""

    @classmethod
    def of(cls, splits: Splits[Any], root: str) -> Self:
        """Return the record of opened data; names are relative to ``root``."""
        named = {
            name: _names(samples, root)
            for name in ("train", "val", "test", "unused")
            if (samples := getattr(splits, name)) is not None
        }
        where = os.path.abspath(root) if root else ""
        return cls(tuple(splits.classes), splits.held_out, named, where)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what :meth:`write` wrote.

        Raises:
            ValueError: if it is damaged.
        """
        try:
            content = json.loads(gzip.decompress(path.read_bytes()))
            classes, root = tuple(content["classes"]), content.get("root", "")
            return cls(classes, content["held_out"], content["splits"], root)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is damaged ({type(error).__name__}), so it cannot be checked whether "
                "the data have changed; delete it to continue with the data as they are"
            ) from error

    def write(self, path: Path) -> None:
        """Write the record as compressed JSON."""
        content = vars(self)
        packed = gzip.compress(json.dumps(content).encode(), mtime=0)
        write_atomically(path, lambda temporary: temporary.write_bytes(packed))

    def check(self, now: DataRecord, *, allow_changed: bool) -> None:
        """Raise unless the data of a resumed run are those that it began with.

        Args:
            now: record of the data as they are now.
            allow_changed: accept images that were added, removed or relabelled, but not classes.

        Raises:
            ValueError: saying what has changed.
        """
        if now.classes != self.classes:
            lost = [name for name in self.classes if name not in now.classes]
            new = [name for name in now.classes if name not in self.classes]
            raise ValueError(
                f"the classes of the data have changed since the run began: "
                f"{_some(new, 'new')}{', ' if new and lost else ''}{_some(lost, 'missing')}"
                f"{'' if new or lost else 'their order is different'}. The network has "
                f"{len(self.classes)} classes, so start a new run with another --out"
            )
        changes = list(self._changes(now))
        if changes and not allow_changed:
            raise ValueError(
                f"the data have changed since the run began: {'; '.join(changes)}. Restore them, "
                "start a new run with another --out, or continue with --data.allow_changed true, "
                "which keeps the validation images"
            )

    def shares_images(self, other: DataRecord) -> bool:
        """Return whether some image of ``other`` is one of these."""
        mine = {name for own in self.splits.values() for name in own}
        return any(name in mine for own in other.splits.values() for name in own)

    def keep_division(self, splits: Splits[Any], root: str) -> Splits[Any]:
        """Return splits in which the run's held-out images, and only these, are ``val``.

        New images are for training. Splits of the data set's own are kept as they are.

        Args:
            splits: of the data as they are now.
            root: of the data.

        Raises:
            ValueError: if none of the held-out images is left, or none to train on.
        """
        if not (self.held_out and splits.held_out) or splits.train is None:
            return splits
        everything = splits.train.join(splits.val)
        if splits.unused is not None:
            everything = everything.join(splits.unused)
        held = self.splits["val"]
        unused = self.splits.get("unused", {})
        names = [below(everything.name(i), root) for i in range(len(everything))]
        val = [i for i, name in enumerate(names) if name in held]
        train = [i for i, name in enumerate(names) if name not in held and name not in unused]
        if not train or not val:
            raise ValueError(
                f"{len(val)} of the run's {len(held)} held-out images are left, and {len(train)} "
                "to train on: start a new run with another --out"
            )
        left = [i for i, name in enumerate(names) if name not in held and name in unused]
        return replace(
            splits,
            train=everything.take(train),
            val=everything.take(val),
            unused=everything.take(left) if left else None,
        )

    def _changes(self, now: DataRecord) -> Iterator[str]:
        before, after = self._by_part(), now._by_part()
        for part in sorted({*before, *after}):
            old, new = before.get(part, {}), after.get(part, {})
            added = [name for name in new if name not in old]
            removed = [name for name in old if name not in new]
            relabelled = [name for name in new if name in old and new[name] != old[name]]
            for names, what in ((added, "added"), (removed, "removed"), (relabelled, "relabelled")):
                if names:
                    yield f"{_some(names, what)} ({part})"

    def _by_part(self) -> dict[str, Names]:
        """Return names by split, with training and held-out images as one."""
        if not self.held_out:
            return dict(self.splits)
        pool = ("train", "val", "unused")
        joined = {name: label for own in pool for name, label in self.splits.get(own, {}).items()}
        rest = {name: own for name, own in self.splits.items() if name not in pool}
        return {"train and val": joined} | rest


def below(name: str, root: str) -> str:
    """Return a sample's name relative to the data's root, so that both may be moved together."""
    inside = os.path.relpath(name, root) if root else name
    return name if inside.startswith("..") else inside


def _names(samples: Samples, root: str) -> Names:
    def digest(label: object) -> str:
        return hashlib.sha256(repr(label).encode()).hexdigest()[:8]

    return {below(samples.name(i), root): digest(samples.label(i)) for i in range(len(samples))}


def _some(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}: {few(names, 3)}" if names else ""
