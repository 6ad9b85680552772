"""Images to results, in order: read ahead in the background, predicted in batches of one shape."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor

from rmt.task import BatchPredictor

T = TypeVar("T")

#: What reading or predicting an image raises if the fault lies in the image, or in its size.
FAULTS = (ValueError, OSError, MemoryError, RuntimeError)
#: Images are held back until a batch of their shape is full, up to so many batches ...
_MOST_BATCHES = 4
#: ... and so many bytes.
_MOST_BYTES = 2**28
_THREADS = min(4, os.cpu_count() or 1)


@dataclass
class Outcome(Generic[T]):
    """What became of one image.

    Attributes:
        item: what the image was read from.
        image: as read, if asked for.
        pixels: the prepared image, until it is predicted.
        result: of the prediction; None as long as there is none.
        error: why there will be none.
    """

    item: T
    image: Image.Image | None = None
    pixels: Tensor | None = None
    result: dict[str, Any] | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        """Return whether nothing is left to do."""
        return self.result is not None or self.error is not None


def predict_in_order(
    items: Iterable[T],
    read: Callable[[T], Image.Image],
    predictor: BatchPredictor,
    *,
    batch_size: int,
    keep_images: bool = False,
) -> Iterator[Outcome[T]]:
    """Predict images in batches; threads read the next ones while the network runs.

    An image waits until a batch of its shape is full, but neither for more than a few batches nor
    for more than 256 MB of others, so that memory does not grow with their number.

    Args:
        items: what the images are read from.
        read: returns the RGB image of an item; raises one of :data:`FAULTS` if it cannot.
        predictor: of the model.
        batch_size: most images to predict at once.
        keep_images: whether the outcomes hold the images.

    Yields:
        The outcome of each item, in order.

    Raises:
        ValueError: if ``batch_size`` is not positive.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")

    def load(item: T) -> Outcome[T]:
        try:
            image = read(item)
            pixels = predictor.prepare(image)
        except FAULTS as error:
            return Outcome(item, error=error)
        return Outcome(item, image=image if keep_images else None, pixels=pixels)

    held: deque[Outcome[T]] = deque()
    groups: dict[tuple[int, ...], list[Outcome[T]]] = {}

    def run(shape: tuple[int, ...]) -> None:
        _predict(groups.pop(shape), predictor)

    for new in _read_ahead(items, load, count=max(batch_size, 2 * _THREADS)):
        held.append(new)
        if new.pixels is not None:
            shape = predictor.shape(new.pixels)
            group = groups.setdefault(shape, [])
            group.append(new)
            if len(group) == batch_size:
                run(shape)
        while held and (held[0].done or _too_many(held, batch_size)):
            if not held[0].done:
                run(predictor.shape(_prepared(held[0])))
            yield held.popleft()
    while held:
        if not held[0].done:
            run(predictor.shape(_prepared(held[0])))
        yield held.popleft()


def _read_ahead(
    items: Iterable[T], load: Callable[[T], Outcome[T]], *, count: int
) -> Iterator[Outcome[T]]:
    """Yield each loaded item, in order, while threads load the next ``count``."""
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="rmt-read")
    try:
        waiting: deque[Future[Outcome[T]]] = deque()
        for item in items:
            waiting.append(pool.submit(load, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _predict(group: list[Outcome[T]], predictor: BatchPredictor) -> None:
    """Fill in the results; if a batch fails, as for want of memory, its images go one by one."""
    try:
        with torch.inference_mode():
            results = predictor.predict([_prepared(own) for own in group])
    except FAULTS as error:
        if len(group) == 1:
            group[0].error = error
        else:
            for own in group:
                _predict([own], predictor)
    else:
        for own, result in zip(group, results, strict=True):
            own.result = result
    for own in group:
        own.pixels = None


def _too_many(held: deque[Outcome[T]], batch_size: int) -> bool:
    if batch_size == 1 or len(held) >= _MOST_BATCHES * batch_size:
        return True
    return sum(own.pixels.nbytes for own in held if own.pixels is not None) > _MOST_BYTES


def _prepared(own: Outcome[T]) -> Tensor:
    assert own.pixels is not None
    return own.pixels
