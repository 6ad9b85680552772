"""The type checker that jaxtyping applies to every function of rmt during tests."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPep673Exception

_check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # accept an int as a float


def checked(function: Callable) -> Callable:
    """Check the function's annotations on each call, unless they need `Self`.

    jaxtyping decorates methods one by one, and beartype knows `Self` only on whole classes.
    """
    try:
        return _check(function)
    except BeartypeDecorHintPep673Exception:
        return function
