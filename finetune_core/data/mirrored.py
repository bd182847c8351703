"""Whether the mirror image of a class could be of another class, or of none: a guess from the classes' names."""

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


def directional(classes: Sequence[str]) -> list[str]:
    """The names that speak of a direction (``turn_left``), or of a letter, a digit or a number that looks otherwise in a mirror."""
    return [name for name in classes if _is_directional(name.strip())]


def _is_directional(name: str) -> bool:
    if (len(name) == 1 and name.isalnum()) or name.isdigit():
        return not set(name) <= _SYMMETRIC
    words = set(_WORD.findall(name.lower()))
    return bool(words) and (bool(words & _DIRECTIONS) or words <= _DIGITS)
