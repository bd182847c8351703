import pytest

from finetune_core.data.same_classes import match_classes


def test_equal_names_are_the_same_class_whatever_the_order():
    found = match_classes(("red", "green", "blue"), ["blue", "violet", "red"])
    assert found.labels == {"blue": 2, "red": 0}
    assert (found.respelled, found.unknown, found.missing) == ({}, ("violet",), ("green",))


def test_case_and_spaces_do_not_count_where_no_other_can_be_meant():
    found = match_classes(("light blue", "red"), ["Light  Blue", "RED "])
    assert found.labels == {"Light  Blue": 0, "RED ": 1}
    assert found.respelled == {"Light  Blue": "light blue", "RED ": "red"}


@pytest.mark.parametrize(
    ("own", "theirs", "labels", "unknown"),
    [
        (("Red", "red"), ["RED"], {}, ("RED",)),
        (("red",), ["Red", "RED"], {}, ("RED", "Red")),
        (("red",), ["Red", "red"], {"red": 0}, ("Red",)),
        (("Red", "red"), ["red", "RED"], {"red": 1}, ("RED",)),
        (("a-b",), ["a b"], {}, ("a b",)),
    ],
)
def test_what_could_mean_several_or_differs_in_more_is_unknown(own, theirs, labels, unknown):
    found = match_classes(own, theirs)
    assert (found.labels, found.respelled, found.unknown) == (labels, {}, unknown)
