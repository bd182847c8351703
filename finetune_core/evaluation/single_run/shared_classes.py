"""Classes that a run's own images and shifted images have in common.

An accuracy on images of other classes measures how hard those classes are, not the effect of the
shift. So both sides are restricted to the images of the classes that both have. The network still
chooses among all of its classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune_core.data.checks import join_names
from finetune_core.errors import RunError
from finetune_core.formatting import pluralize

_MOST_NAMED = 8  # classes in a sentence


@dataclass(frozen=True)
class SharedClasses:
    """The classes that both sides have images of, and what is left out of either side.

    Attributes:
        labels: labels of the shared classes, ascending.
        names: names of the shared classes.
        own_only: class without shifted images -> number of the run's own images of it.
        shifted_only: class without own images -> number of shifted images of it.
    """

    labels: tuple[int, ...]
    names: tuple[str, ...]
    own_only: dict[str, int]
    shifted_only: dict[str, int]

    @property
    def is_complete(self) -> bool:
        """True if both sides have images of the same classes, so that nothing is left out."""
        return not self.own_only and not self.shifted_only

    def to_sentences(self) -> list[str]:
        """Return which classes are compared and what is left out, in sentences.

        Empty if nothing is left out.
        """
        if self.is_complete:
            return []
        named = join_names([f"“{name}”" for name in self.names], _MOST_NAMED)
        count = pluralize(len(self.names), "class", "classes")
        sentences = [f"Both sides are compared on the {count} that both have images of: {named}."]
        if self.own_only:
            sentences.append(
                "Left out of the run's own images, because no shifted image is of these classes: "
                f"{_list_images(self.own_only)}."
            )
        if self.shifted_only:
            sentences.append(
                "Left out of the shifted images, because none of the run's own images here is of "
                f"these classes: {_list_images(self.shifted_only)}."
            )
        return sentences

    def to_json(self) -> dict[str, Any]:
        """Return plain values: ``compared_classes, own_only_classes, shifted_only_classes``."""
        return {
            "compared_classes": list(self.names),
            "own_only_classes": self.own_only,
            "shifted_only_classes": self.shifted_only,
        }


def find_shared_classes(
    classes: Sequence[str], own_labels: np.ndarray, shifted_labels: np.ndarray
) -> SharedClasses:
    """Find the classes that have images on both sides.

    Args:
        classes: names; a label is an index into them.
        own_labels: int ``[n]``, of the run's own images.
        shifted_labels: int ``[m]``, of the shifted images.

    Raises:
        RunError: if there is no such class.
    """
    own, shifted = (
        np.bincount(each, minlength=len(classes)).tolist() for each in (own_labels, shifted_labels)
    )
    counts = list(zip(classes, own, shifted, strict=True))
    labels = [index for index, (_, ours, theirs) in enumerate(counts) if ours and theirs]
    own_only = {name: ours for name, ours, theirs in counts if ours and not theirs}
    shifted_only = {name: theirs for name, ours, theirs in counts if theirs and not ours}
    if not labels:
        raise RunError(
            "The run's own images and the shifted ones have no class in common, so there is no "
            f"drop to measure: its own are of {join_names(list(own_only))}, the shifted ones of "
            f"{join_names(list(shifted_only))}. Use shifted images of the same classes, or another "
            "split of the run's own images."
        )
    return SharedClasses(
        tuple(labels), tuple(classes[index] for index in labels), own_only, shifted_only
    )


def _list_images(images: dict[str, int]) -> str:
    return join_names(
        [f"“{name}” ({pluralize(count, 'image')})" for name, count in images.items()], _MOST_NAMED
    )
