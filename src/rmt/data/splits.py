"""The splits of a data set: what they are called, what is held out, and what they hold."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol, Self, TypeVar, runtime_checkable

from PIL import Image

from rmt.data.classes import few
from rmt.data.findings import Findings
from rmt.messages import printable

Split = Literal["train", "val", "test"]
#: The splits in their order, and what people call them; where two names occur, the first is taken.
SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training", "trainval", "trn"),
    "val": ("val", "valid", "validation", "dev", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst"),
}
#: Words that say nothing beside a split's name: ``train_set``, ``test images``, ``ValData``.
_FILLERS = ("sets", "set", "split", "data", "dataset", "images", "imgs")

E = TypeVar("E")


@runtime_checkable
class Samples(Protocol):
    """The images of one split with what is known about them; a task adds its labels."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is an index into them."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """Return an image as RGB; raises ``ValueError`` naming a file that cannot be read."""
        ...

    def name(self, index: int) -> str:
        """Return the path of an image, or where else it comes from."""
        ...

    def digest(self) -> str:
        """Return the SHA-256 of names, sizes and labels."""
        ...

    def label(self, index: int) -> object:
        """Return plain values that tell the labels of an image from others."""
        ...

    def take(self, indices: Sequence[int]) -> Self:
        """Return some of the images."""
        ...

    def join(self, other: Self) -> Self:
        """Return these images and others of the same data set."""
        ...


S = TypeVar("S", bound=Samples)


@dataclass(frozen=True)
class Splits(Generic[S]):
    """The splits of a data set.

    Attributes:
        train: images to train on, or None if there are none.
        val: images that choose the best weights.
        test: images of the final evaluation, or None where ``val`` serves.
        unused: training images that are not trained on, such as those without objects.
        held_out: whether ``val`` was taken from the training images.
        format: what the data set was read as, for people.
        sign: what it was recognised by; empty if its format was named.
        findings: what was left out.
    """

    train: S | None
    val: S
    test: S | None = None
    unused: S | None = None
    held_out: bool = False
    format: str = ""
    sign: str = ""
    findings: Findings = field(default_factory=Findings, compare=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, which all splits share."""
        return self.val.classes

    @property
    def evaluated(self) -> S:
        """Images of the final evaluation: the test split, or the validation split."""
        return self.val if self.test is None else self.test

    @property
    def evaluated_name(self) -> Split:
        """Name of the split of :attr:`evaluated`."""
        return "val" if self.test is None else "test"

    def describe(self, names: int = 10) -> str:
        """Return one sentence: format, classes, images of each split, what was left out and why.

        Args:
            names: most classes that are named.
        """
        counts = [] if self.train is None else [f"{len(self.train)} train"]
        counts += [f"{len(self.val)} val"] if self.test is not self.val else []
        if self.test is not None:
            counts.append(f"{len(self.test)} test")
        shown = f"{' / '.join(counts)} images"
        if self.train is None:
            shown += ", none to train on"
        elif self.held_out:
            shown += " (val held out of train)"
        count = len(self.classes)
        classes = f"{count} {'class' if count == 1 else 'classes'} ({few(self.classes, names)})"
        told = (self.format, classes, shown, self.findings.describe())
        sentence = ", ".join(each for each in told if each)
        sentence += f"; recognised by {self.sign}" if self.sign else ""
        return printable(sentence, limit=20_000)


def split_of(name: str, *, within: bool = False) -> Split | None:
    """Return the split that a folder, file or table calls by this name, in any case.

    ``Train``, ``training_set``, ``train2017`` and ``TrainImages`` are ``train``.

    Args:
        name: the whole name, such as ``valid``.
        within: whether it is enough that one of its words names a split, as in
            ``instances_val2017`` or ``train-00000-of-00294``; the first such word counts.
    """
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word]
    if not within:
        words = [word for word in words if word not in _FILLERS]
        if len(words) != 1:
            return None
    return next((split for word in words if (split := _of_word(word))), None)


def _of_word(word: str) -> Split | None:
    stems = {word, *(word.removesuffix(filler) for filler in _FILLERS)}
    return next((split for split, names in SPLITS.items() if not stems.isdisjoint(names)), None)


def sort_by_split(
    named: Iterable[tuple[str, E]], *, within: bool = False
) -> tuple[dict[Split, E], list[E]]:
    """Return what belongs to each split by its name, and what belongs to none or came second.

    Args:
        named: names with what they stand for. Where two name one split, the more usual name counts.
        within: as in :func:`split_of`.
    """
    entries = list(named)
    at: dict[Split, int] = {}
    for index, (name, _) in enumerate(entries):
        split = split_of(name, within=within)
        if split and (split not in at or _rank(name, split) < _rank(entries[at[split]][0], split)):
            at[split] = index
    found: dict[Split, E] = {split: entries[at[split]][1] for split in SPLITS if split in at}
    chosen = set(at.values())
    return found, [entry for index, (_, entry) in enumerate(entries) if index not in chosen]


def _rank(name: str, split: Split) -> tuple[int, str]:
    """Return how usual a name of a split is, the most usual first."""
    names = SPLITS[split]
    # "validation" holds "val" and "valid" too: the longest name that it holds is its own.
    own = max((each for each in names if each in name.lower()), key=len)
    return names.index(own), name


def divide(
    parts: Mapping[Split, S],
    val_fraction: float,
    *,
    where: str,
    labels: Callable[[S], Sequence[int]] | None = None,
    part: tuple[int, int] | None = None,
) -> Splits[S]:
    """Return the splits that a data set brings; a missing ``val`` is held out of ``train``.

    An undivided data set is all ``train``. Without ``train`` there is something to evaluate only.

    Args:
        parts: the images of each split.
        val_fraction: share that is held out; 1 makes all of them ``val`` and trains on none.
        where: the data set, for messages.
        labels: class of each image, to hold out a share of each class.
        part: hold out one part of several equal ones instead: which one, of how many.

    Raises:
        ValueError: if there are no images, or nothing is held out where nothing else would choose
            the weights, or there are too few images to hold some out.
    """
    train, val, test = (parts.get(split) for split in SPLITS)
    if val is not None:
        return Splits(train, val, test)
    if train is None or val_fraction == 1:
        evaluated = test if train is None else train
        if evaluated is None:
            raise ValueError(f"{where} holds no images")
        return Splits(None, evaluated, test)
    if part:
        known = labels(train) if labels else None
        train, val = hold_out_part(train, part, where=where, labels=known)
        return Splits(train, val, test, held_out=True)
    if not 0 < val_fraction < 1:
        raise ValueError(
            f"data.val_fraction is {val_fraction:g} and {where} has no validation split: then "
            "nothing would choose the best weights; hold out a share between 0 and 1, such as 0.1"
        )
    known = labels(train) if labels else None
    train, val = hold_out(train, val_fraction, where=where, labels=known)
    return Splits(train, val, test, held_out=True)


def hold_out(
    samples: S, fraction: float, *, where: str, labels: Sequence[int] | None = None
) -> tuple[S, S]:
    """Return the images without a share of them, and that share: the same images each time.

    Args:
        samples: of the data set.
        fraction: that is held out, between 0 and 1; at least one image.
        where: the data set, for messages.
        labels: class of each image: then a share of each class is held out, at least one image.

    Raises:
        ValueError: if there is one image only, or one of some class.
    """
    count = len(samples)
    if labels is not None:
        train, val = _stratified(labels, fraction, names=samples.classes, where=where)
    else:
        order = list(range(count))
        random.Random(0).shuffle(order)
        held = max(1, round(count * fraction))
        if held >= count:
            raise ValueError(f"{where} has {count} images; too few to hold {held} out")
        train, val = order[held:], order[:held]
    return samples.take(sorted(train)), samples.take(sorted(val))


def hold_out_part(
    samples: S, part: tuple[int, int], *, where: str, labels: Sequence[int] | None = None
) -> tuple[S, S]:
    """Return the images without one of several parts, and that part: the same images each time.

    Args:
        samples: of the data set.
        part: which one, of how many: each image is in exactly one.
        where: the data set, for messages.
        labels: class of each image: then the parts have equally many of each class, to one image.

    Raises:
        ValueError: if there are fewer images than parts.
    """
    fold, folds = part
    if len(samples) < folds:
        raise ValueError(f"{where} has {len(samples)} images; too few for data.folds {folds}")
    order = list(range(len(samples)))
    random.Random(0).shuffle(order)
    if labels is not None:
        order.sort(key=labels.__getitem__)
    held = order[fold::folds]
    return samples.take(sorted({*order}.difference(held))), samples.take(sorted(held))


def _stratified(
    labels: Sequence[int], fraction: float, *, names: Sequence[str], where: str
) -> tuple[list[int], list[int]]:
    # Imported here: data with a validation split of its own does without.
    from sklearn.model_selection import train_test_split

    count = Counter(labels)
    label = min(count, key=count.__getitem__)
    if count[label] < 2:
        raise ValueError(
            f"{where}: class {names[label]!r} has one image only, which cannot be split into "
            "train and val"
        )
    train, val = train_test_split(
        range(len(labels)),
        test_size=max(fraction, len(count) / len(labels)),
        stratify=labels,
        random_state=0,
    )
    return train, val
