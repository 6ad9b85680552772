"""The splits of a data set: their names, what is held out, and which classes they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar, runtime_checkable

from PIL import Image


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

    def take(self, indices: Sequence[int]) -> Self:
        """Return some of the images."""
        ...


S = TypeVar("S", bound=Samples)


@dataclass(frozen=True)
class Splits(Generic[S]):
    """The splits of a data set.

    Attributes:
        train: images to train on, or None if there are none.
        val: images that choose the best weights.
        test: images of the final evaluation, or None where ``val`` serves.
    """

    train: S | None
    val: S
    test: S | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, which all splits share."""
        return self.val.classes

    @property
    def evaluated(self) -> S:
        """Images of the final evaluation: the test split, or the validation split."""
        return self.val if self.test is None else self.test
