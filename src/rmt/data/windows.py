"""Windows that cover an image and overlap."""

from __future__ import annotations


def starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows along an axis start; the last one is moved back to end at the border.

    Args:
        length: of the axis, in pixels.
        window: length of a window; the only one starts at 0 if it is longer than the axis.
        stride: pixels from one window to the next.
    """
    last = max(0, length - window)
    return [*range(0, last, stride), last]
