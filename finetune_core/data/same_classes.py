"""Matching of the classes of two data sets by name."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from finetune_core.data.checks import join_names


@dataclass(frozen=True)
class ClassMatch:
    """Classes of another data set that match one's own.

    Attributes:
        labels: name in the other data set -> label in one's own.
        respelled: name in the other data set -> own name, for names that differ in case or spaces.
        unknown: names in the other data set without a match.
        missing: own names without a match.
    """

    labels: dict[str, int]
    respelled: dict[str, str]
    unknown: tuple[str, ...]
    missing: tuple[str, ...]


def describe_class_difference(classes: Sequence[str], reference: Sequence[str]) -> str:
    """Describe how a list of classes differs from a reference, as ``has “a” and lacks “b”``.

    Networks number their outputs by this list, so the order counts, too. The text is empty if both
    are equal.
    """
    if list(classes) == list(reference):
        return ""
    new = [f"“{name}”" for name in classes if name not in set(reference)]
    lacking = [f"“{name}”" for name in reference if name not in set(classes)]
    parts = [
        f"has {join_names(new)}" if new else "",
        f"lacks {join_names(lacking)}" if lacking else "",
    ]
    return " and ".join(filter(None, parts)) or "has the same classes in another order"


def match_classes(own: Sequence[str], theirs: Iterable[str]) -> ClassMatch:
    """Match names of classes.

    Equal names match first. Of the rest, names match that differ only in case and spaces, if no
    other name could be meant.

    Args:
        own: names without repeats; a label is an index into them.
        theirs: names without repeats.
    """
    theirs = sorted(theirs)
    own_counts, their_counts = Counter(map(_normalize, own)), Counter(map(_normalize, theirs))
    by_key = {_normalize(name): name for name in own}
    label_of = {name: label for label, name in enumerate(own)}
    respelled = {
        name: by_key[key]
        for name in theirs
        if name not in label_of and own_counts[key := _normalize(name)] == their_counts[key] == 1
    }
    labels = {
        name: label_of[respelled.get(name, name)]
        for name in theirs
        if name in label_of or name in respelled
    }
    found = set(labels.values())
    return ClassMatch(
        labels,
        respelled,
        tuple(name for name in theirs if name not in labels),
        tuple(name for name, label in label_of.items() if label not in found),
    )


def _normalize(name: str) -> str:
    return "".join(name.casefold().split())
