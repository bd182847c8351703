"""The classes of one data set found among those of another one, by their names."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from finetune_core.data.checks import some


@dataclass(frozen=True)
class SameClasses:
    """Which class of another data set is which of one's own.

    Attributes:
        labels: name there -> label here.
        respelled: name there -> name here, of those that differ in case or spaces.
        unknown: names there that are none here.
        missing: names here that none there is.
    """

    labels: dict[str, int]
    respelled: dict[str, str]
    unknown: tuple[str, ...]
    missing: tuple[str, ...]


def describe_class_difference(classes: Sequence[str], reference: Sequence[str]) -> str:
    """Return how a list of classes differs from another one, as ``has “a” and lacks “b”``.

    Networks number their outputs by this list, so the order counts, too. Empty where both are equal.
    """
    if list(classes) == list(reference):
        return ""
    new = [f"“{name}”" for name in classes if name not in set(reference)]
    gone = [f"“{name}”" for name in reference if name not in set(classes)]
    parts = [f"has {some(new)}" if new else "", f"lacks {some(gone)}" if gone else ""]
    return " and ".join(filter(None, parts)) or "has the same classes in another order"


def same_classes(own: Sequence[str], theirs: Iterable[str]) -> SameClasses:
    """Match names: equal ones first; of the rest, those that differ in case and spaces only, where no other could be meant.

    Args:
        own: names without repeats; a label is an index into them.
        theirs: names without repeats.
    """
    theirs = sorted(theirs)
    here, there = Counter(map(_key, own)), Counter(map(_key, theirs))
    by_key = {_key(name): name for name in own}
    label_of = {name: label for label, name in enumerate(own)}
    respelled = {
        name: by_key[key]
        for name in theirs
        if name not in label_of and here[key := _key(name)] == there[key] == 1
    }
    labels = {
        name: label_of[respelled.get(name, name)]
        for name in theirs
        if name in label_of or name in respelled
    }
    found = set(labels.values())
    return SameClasses(
        labels,
        respelled,
        tuple(name for name in theirs if name not in labels),
        tuple(name for name, label in label_of.items() if label not in found),
    )


def _key(name: str) -> str:
    return "".join(name.casefold().split())
