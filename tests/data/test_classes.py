"""Whether a model's classes are the data's: one check for all tasks."""

import pytest

from rmt.data.classes import check_classes

NAMES = ("a", "b", "c")


def test_equal_names_need_no_mapping() -> None:
    assert check_classes(NAMES, NAMES, num_classes=3) == (0, 1, 2)
    assert check_classes(["a ", "b", "c"], NAMES, num_classes=3) == (0, 1, 2)  # mmseg's "bed "
    assert check_classes(None, NAMES, num_classes=3) == (0, 1, 2)


def test_the_number_must_be_equal() -> None:
    with pytest.raises(ValueError, match=r"the model has 4 classes and the data 3 \(a, b, c\)"):
        check_classes(None, NAMES, num_classes=4)


def test_another_order_is_mapped_or_refused() -> None:
    assert check_classes(("c", "a", "b"), NAMES, num_classes=3, any_order=True) == (2, 0, 1)
    with pytest.raises(ValueError, match="in another order: 'b' where the model has 'c', 2 places"):
        check_classes(("a", "c", "b"), NAMES, num_classes=3)


def test_other_names_are_refused_in_any_order() -> None:
    for any_order in (True, False):
        with pytest.raises(ValueError, match=r"other classes than the data has: .* first 'cat'"):
            check_classes(("cat", "b", "c"), NAMES, num_classes=3, any_order=any_order)


def test_other_words_may_mean_the_same() -> None:
    theirs = ("ant", "bee", "cow")
    same = lambda ours, data: (tuple(ours), tuple(data)) == (theirs, NAMES)  # noqa: E731
    assert check_classes(theirs, NAMES, num_classes=3, same=same) == (0, 1, 2)
