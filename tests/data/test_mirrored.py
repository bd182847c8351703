"""Class names that speak against mirror images."""

import pytest

from finetune_core.data.mirrored import find_directional_classes


@pytest.mark.parametrize(
    ("classes", "found"),
    [
        (("cat", "dog", "copyright", "Northeastern"), []),
        (("turn_left", "Turn Right", "straight"), ["turn_left", "Turn Right"]),
        (("0", "2", "8", "17", "b", "A"), ["2", "17", "b"]),
        (("one", "two hands", "seven"), ["one", "seven"]),
        (("clockwise-rotor", "rotor"), ["clockwise-rotor"]),
        (("", "_"), []),
    ],
)
def test_directions_letters_and_digits_are_recognized_by_whole_words(classes, found):
    assert find_directional_classes(classes) == found
