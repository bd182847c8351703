"""Guess whether the mirror image of a class could belong to another class, or to none.

The guess is made from the names of the classes.
"""

import re
from collections.abc import Sequence

_DIRECTIONS = frozenset(
    [
        "left",
        "right",
        "leftward",
        "rightward",
        "leftwards",
        "rightwards",
        "east",
        "west",
        "clockwise",
        "anticlockwise",
        "counterclockwise",
    ]
)
_DIGITS = frozenset(
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
)
# letters and digits that are their own mirror image, more or less
_SYMMETRIC = frozenset("AHIMOTUVWXY08ovwx")
_WORD = re.compile(r"[^\W_]+")


def find_directional_classes(classes: Sequence[str]) -> list[str]:
    """Return the class names that speak of a direction, or of a character that a mirror changes.

    Directions are names such as ``turn_left``; characters are letters, digits and numbers.
    """
    return [name for name in classes if _is_directional(name.strip())]


def _is_directional(name: str) -> bool:
    if (len(name) == 1 and name.isalnum()) or name.isdigit():
        return not set(name) <= _SYMMETRIC
    words = set(_WORD.findall(name.lower()))
    return bool(words) and (bool(words & _DIRECTIONS) or words <= _DIGITS)
