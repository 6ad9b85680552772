"""Whether a model's classes are the data's: one check for all tasks."""

import pytest

from rmt.data.classes import check_classes, class_list, class_name, whole_number

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


def test_names_are_compared_as_people_read_them() -> None:
    composed, decomposed = "gr\u00f6\u00dfe", "gro\u0308\u00dfe "
    assert class_name(decomposed) == composed
    assert class_name("a\n b\t\x00\x9b \ud800") == "a b \ufffd"
    assert class_name(composed.encode().decode("ascii", "surrogateescape")) == composed
    assert check_classes(("a", decomposed), ("a", composed), num_classes=2) == (0, 1)


def test_a_model_s_list_counts_if_it_holds_all() -> None:
    assert class_list(["b", "a"], ["c", "b", "a"]) == ("c", "b", "a")
    assert class_list(["b", "x"], ["c", "b", "a"]) == ("b", "x")
    assert class_list(["b", "a"]) == ("b", "a")
    words = {"1.0": "1", "10.": "10", "1.5": "1.5", "x.0": "x.0", "01": "01"}
    assert {word: whole_number(word) for word in words} == words


def test_other_words_may_mean_the_same() -> None:
    theirs = ("ant", "bee", "cow")
    same = lambda ours, data: (tuple(ours), tuple(data)) == (theirs, NAMES)  # noqa: E731
    assert check_classes(theirs, NAMES, num_classes=3, same=same) == (0, 1, 2)
