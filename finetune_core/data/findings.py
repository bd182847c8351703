"""What may be wrong with a data set: the vocabulary. Which checks find it stands in ``checks.py`` and in ``inspection``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune_core.config import Edit
from finetune_core.data.edits import ignored

Severity = Literal["error", "warning", "info"]
Action = Literal["exclude", "move", "relabel"]


@dataclass(frozen=True)
class Kind:
    """A kind of finding: what it is called, why it matters, and what can be done about it (it can always be ignored).

    Attributes:
        guess: it is inferred from likeness or from statistics, not measured, and may be wrong: each image is confirmed by a person, or
            a threshold whose effect is visible; there is no action on all at once.
        ranked: its list has the surest first, so that a threshold can be chosen.
    """

    title: str
    why: str
    action: Action | None = None
    guess: bool = False
    ranked: bool = False


KINDS: dict[str, Kind] = {
    # Files that were left out.
    "unreadable": Kind("Not images", "They are in no format that Thaw reads, whatever their names say. They are left out."),
    "damaged": Kind("Damaged or cut short", "They cannot be decoded to the last row. They are left out."),
    "empty_file": Kind("Empty files", "They hold nothing: a copy that was broken off, perhaps. They are left out."),
    "missing_file": Kind("Missing files", "The manifest names them, but they are not there. They are left out."),
    "outside": Kind("Outside the data folders", "They lie where this server may not read. They are left out."),
    "bad_name": Kind(
        "Names that are not valid Unicode", "No table can hold such a name. Rename them; until then they are left out."
    ),
    "no_class": Kind("Images in no class folder", "Nothing says what they show, so they are left out."),
    "empty_class": Kind("Folders without images", "They are left out: there is nothing to learn from."),
    "ignored_folder": Kind(
        "Folders beside train/ and val/", "They are left out, because the folder says itself what is used for what."
    ),
    "not_an_image": Kind("Other files", "They are left out."),
    # Files.
    "wrong_extension": Kind(
        "Misnamed files", "The content is another format than the name says. Thaw goes by the content; other programs may not."
    ),
    "animated": Kind("Animations", "Only the first frame is used, which may show something else.", "exclude"),
    "extreme_aspect": Kind(
        "Very long or very tall", "The network sees the square in the middle: less than a third of the picture.", "exclude"
    ),
    "tiny": Kind("Tiny", "Enlarged to what the network takes, they are a blur.", "exclude"),
    "over_large": Kind(
        "Very large files", "Most of the time goes into decoding them, and the network sees a small version anyway."
    ),
    "odd_mode": Kind(
        "Unusual colour modes",
        "They are turned into 8-bit RGB: transparency is laid on white, 16 bits are cut to 8. Look whether that is right.",
    ),
    # Copies.
    "conflicting_labels": Kind(
        "Copies with different labels",
        "The same picture cannot be both. Whichever is right, the network is told a lie.",
        "exclude",
    ),
    "leakage": Kind(
        "Leakage: copies across splits",
        "The network can score by remembering them, so the result is too good to be true.",
        "exclude",
    ),
    "near_leakage": Kind(
        "Possible leakage: near-duplicates across splits",
        "If it is nearly the same picture that is trained on and judged, the result is too good to be true. Different things that look "
        "alike belong where they are: compare each pair.",
        "move",
        guess=True,
        ranked=True,
    ),
    "exact_duplicates": Kind("Exact copies", "They count twice, and make the set look larger than it is.", "exclude"),
    "near_duplicates": Kind(
        "Possible near-duplicates",
        "The same picture saved again, scaled, or taken a moment later adds little, and counts twice.",
        "exclude",
        guess=True,
        ranked=True,
    ),
    # Classes.
    "single_class": Kind("Only one class", "There is nothing to tell apart. Training needs at least two classes."),
    "class_not_trained": Kind("Classes without training images", "The network cannot learn them."),
    "class_not_validated": Kind("Classes without validation images", "Nothing will be said about them while training."),
    "class_not_tested": Kind("Classes without test images", "The final result says nothing about them."),
    "few_images": Kind("Classes with few images", "A class is hardly learned from fewer than ten pictures."),
    "imbalance": Kind(
        "Unequal classes", "Accuracy alone will mislead: naming the largest class always is right most of the time."
    ),
    "similar_class_names": Kind(
        "Possibly one class in two spellings",
        "The names look alike. They may as well be two classes: only the names were compared, not the images.",
        "relabel",
        guess=True,
    ),
    # Light and sharpness.
    "dark": Kind(
        "Possibly too dark",
        "Little can be seen on them, unless that is how this class looks.",
        "exclude",
        guess=True,
        ranked=True,
    ),
    "bright": Kind(
        "Possibly too bright",
        "Little can be seen on them, unless that is how this class looks.",
        "exclude",
        guess=True,
        ranked=True,
    ),
    "uniform": Kind("Nearly uniform", "They show next to nothing.", "exclude"),
    "blurry": Kind(
        "Possibly blurred", "They are much less sharp than the rest of the set.", "exclude", guess=True, ranked=True
    ),
    # What features tell.
    "shift": Kind(
        "Splits that differ",
        "Validation is meant to show how the network does on images like those it learned from; these are not alike.",
        guess=True,
    ),
    "label_errors": Kind(
        "Possible label errors",
        "To a linear model trained on the other images, they look like another class. Many of them may be right: images that are hard to "
        "tell apart are listed, too.",
        "relabel",
        guess=True,
        ranked=True,
    ),
    "outliers": Kind(
        "Possible outliers", "Nothing in the set resembles them: a stray file, perhaps.", "exclude", guess=True, ranked=True
    ),
}


@dataclass(frozen=True)
class Finding:
    """Something about the data that a person should know before training on it.

    Attributes:
        kind: a key of ``KINDS``.
        count: of images, files or classes concerned.
        paths: ids of the images (files, folders) concerned, the worst first.
        classes: for what concerns whole classes.
        sets: images that belong together, the one to keep first; for copies.
        to: path -> the class or split that it should get; for what can be relabelled or moved.
        notes: path -> a few words on this one.
    """

    kind: str
    severity: Severity
    message: str
    count: int
    paths: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    sets: tuple[tuple[str, ...], ...] = ()
    to: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        kind = KINDS[self.kind]
        return {
            "kind": self.kind,
            "severity": self.severity,
            "count": self.count,
            "message": self.message,
            "why": kind.why,
            "action": kind.action,
            "guess": kind.guess,
            "paths": list(self.paths),
            "classes": list(self.classes),
            "sets": [list(one) for one in self.sets],
            "to": dict(self.to),
        }

    @property
    def bulk(self) -> bool:
        """Whether its action may be taken on all its images in one click: not on a guess, nor on what is the nature of the set."""
        kind = KINDS[self.kind]
        return kind.action is not None and not kind.guess and self.severity != "info"

    def edits(self, paths: Sequence[str]) -> tuple[Edit, ...]:
        """The finding's action on some of its images, as changes to the data set."""
        action = KINDS[self.kind].action
        if action is None:
            return ()
        if action == "exclude":
            return (Edit(action=action, paths=tuple(paths), kind=self.kind),)
        targets = sorted({self.to[path] for path in paths})
        return tuple(
            Edit(action=action, paths=tuple(path for path in paths if self.to[path] == target), to=target, kind=self.kind)
            for target in targets
        )


def unanswered(findings: Sequence[Finding], edits: Sequence[Edit]) -> list[Finding]:
    """The findings but for those that a person chose to ignore, as long as nothing was added to them."""
    seen = ignored(edits)
    return [one for one in findings if one.kind not in seen or not set(one.paths or one.classes) <= seen[one.kind]]
