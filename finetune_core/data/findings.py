"""Vocabulary of the findings about a data set. ``checks.py`` and ``inspection`` find them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from finetune_core.config import Edit
from finetune_core.data.edits import collect_ignored_paths

Severity = Literal["error", "warning", "info"]
Action = Literal["exclude", "move", "relabel"]


@dataclass(frozen=True)
class Kind:
    """A kind of finding: its title, why it matters, and the action against it.

    Every finding can also be ignored.

    Attributes:
        title: the title.
        why: why it matters.
        action: the edit that the finding proposes; None if there is none.
        guess: whether it is inferred from similarity or statistics, not measured, and may be wrong.
            A person then confirms each image, or sets a threshold whose effect is visible. There is
            no action on all images at once.
        ranked: whether its list starts with the most confident, so that a threshold can be chosen.
    """

    title: str
    why: str
    action: Action | None = None
    guess: bool = False
    ranked: bool = False


KINDS: dict[str, Kind] = {
    # Files that were left out.
    "unreadable": Kind(
        "Not images",
        "Not in a format that Thaw reads, regardless of the file name. They are left out.",
    ),
    "damaged": Kind(
        "Damaged or cut short", "They cannot be decoded to the last row. They are left out."
    ),
    "empty_file": Kind(
        "Empty files", "They hold nothing: a copy that was broken off, perhaps. They are left out."
    ),
    "missing_file": Kind(
        "Missing files", "The manifest lists them, but the files do not exist. They are left out."
    ),
    "outside": Kind(
        "Outside the data folders", "They lie where this server may not read. They are left out."
    ),
    "bad_name": Kind(
        "Names that are not valid Unicode",
        "No table can hold such a name. Rename them; until then they are left out.",
    ),
    "no_class": Kind("Images in no class folder", "They have no label, so they are left out."),
    "empty_class": Kind(
        "Folders without images", "They are left out: there is nothing to learn from."
    ),
    "ignored_folder": Kind(
        "Folders beside train/ and val/",
        "They are left out, because train/ and val/ define the splits.",
    ),
    "not_an_image": Kind("Other files", "They are left out."),
    # Files.
    "wrong_extension": Kind(
        "Misnamed files",
        "The content is another format than the name says. Thaw goes by the content; "
        "other programs may not.",
    ),
    "animated": Kind(
        "Animations", "Only the first frame is used, which may show something else.", "exclude"
    ),
    "extreme_aspect": Kind(
        "Extreme aspect ratio",
        "The network sees the centre crop only, less than a third of the image, unless images are "
        "padded to squares.",
        "exclude",
    ),
    "tiny": Kind("Very small images", "Upscaled to the input size, they are blurred.", "exclude"),
    "over_large": Kind(
        "Very large files",
        "Most of the time goes into decoding them, and the network sees a small version anyway.",
    ),
    "odd_mode": Kind(
        "Unusual colour modes",
        "They are converted to 8-bit RGB, 16 bits reduced to 8. Check that this is right.",
    ),
    "transparent": Kind(
        "Transparency or a palette",
        "They are converted to 8-bit RGB on a white background.",
    ),
    # Copies.
    "conflicting_labels": Kind(
        "Copies with different labels",
        "The same image has two labels: at least one of them is wrong.",
        "exclude",
    ),
    "leakage": Kind(
        "Leakage: copies across splits",
        "The network can memorize them, so its accuracy is overestimated.",
        "exclude",
    ),
    "near_leakage": Kind(
        "Possible leakage: near-duplicates across splits",
        "If nearly the same image is in training and in evaluation, the accuracy is "
        "overestimated. Different objects that look alike belong where they are: "
        "compare each pair.",
        "move",
        guess=True,
        ranked=True,
    ),
    "exact_duplicates": Kind(
        "Exact copies", "They count twice, and make the set look larger than it is.", "exclude"
    ),
    "near_duplicates": Kind(
        "Possible near-duplicates",
        "The same image saved again, rescaled, or taken a moment later adds little, and counts "
        "twice.",
        "exclude",
        guess=True,
        ranked=True,
    ),
    # Classes.
    "single_class": Kind("Only one class", "Training needs at least two classes."),
    "class_not_trained": Kind("Classes without training images", "The network cannot learn them."),
    "class_not_validated": Kind(
        "Classes without validation images", "They are not evaluated during training."
    ),
    "class_not_tested": Kind("Classes without test images", "The test metrics do not cover them."),
    "no_test_split": Kind(
        "No test split",
        "The best epoch is chosen on the validation images, so accuracy on them is a little "
        "optimistic. Test images are used for nothing else. Add a test/ folder, or set a test "
        "fraction where Thaw makes the split.",
    ),
    "few_images": Kind(
        "Classes with few images", "Fewer than ten images are rarely enough to learn a class."
    ),
    "imbalance": Kind(
        "Class imbalance",
        "Accuracy alone is misleading: always predicting the largest class would be right most of "
        "the time.",
    ),
    "similar_class_names": Kind(
        "Possibly one class in two spellings",
        "The names look alike. They may well be two classes: only the names were compared, not "
        "the images.",
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
    "uniform": Kind("Nearly uniform", "They show almost nothing.", "exclude"),
    "blurry": Kind(
        "Possibly blurred",
        "They are much less sharp than the rest of the set.",
        "exclude",
        guess=True,
        ranked=True,
    ),
    # From embeddings.
    "shift": Kind(
        "Distribution shift between splits",
        "Validation images should come from the same distribution as the training images; "
        "these do not.",
        guess=True,
    ),
    "label_errors": Kind(
        "Possible label errors",
        "A linear model trained on the other images predicts another class. "
        "Many labels may still be right: hard images are listed, too.",
        "relabel",
        guess=True,
        ranked=True,
    ),
    "outliers": Kind(
        "Possible outliers",
        "Far from all other images in feature space; they may not belong to this data set.",
        "exclude",
        guess=True,
        ranked=True,
    ),
}


@dataclass(frozen=True)
class Finding:
    """A property of the data that a person should know before training on them.

    Attributes:
        kind: a key of ``KINDS``.
        severity: ``error``, ``warning`` or ``info``.
        message: the finding in one sentence.
        count: the number of images, files or classes concerned.
        paths: ids of the images (files, folders) concerned, the worst first.
        classes: the classes concerned, if whole classes are.
        sets: images that belong together, the one to keep first; for copies.
        to: path -> the class or split that it should get; for what can be relabelled or moved.
        notes: path -> a short note on that image.
        confidence: path -> confidence 0…1 of the model that proposes ``to``; if a model does.
        whole_set: whether so many images are concerned that it is the nature of the set.
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
    confidence: Mapping[str, float] = field(default_factory=dict)
    whole_set: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the finding as plain values."""
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
            "confidence": dict(self.confidence),
        }

    @property
    def allows_bulk_action(self) -> bool:
        """True if the action may be taken on all images in one click.

        It may not if the finding is uncertain, or is the nature of the set.
        """
        kind = KINDS[self.kind]
        sure = not kind.guess and not self.whole_set and self.severity != "info"
        return kind.action is not None and sure

    def make_edits(self, paths: Sequence[str]) -> tuple[Edit, ...]:
        """Return the finding's action on some of its images, as edits of the data set."""
        action = KINDS[self.kind].action
        if action is None:
            return ()
        if action == "exclude":
            return (Edit(action=action, paths=tuple(paths), kind=self.kind),)
        targets = sorted({self.to[path] for path in paths})
        return tuple(
            Edit(
                action=action,
                paths=tuple(path for path in paths if self.to[path] == target),
                to=target,
                kind=self.kind,
            )
            for target in targets
        )


def select_open_findings(findings: Sequence[Finding], edits: Sequence[Edit]) -> list[Finding]:
    """Return the findings that a person has not ignored, or that have grown since then."""
    seen = collect_ignored_paths(edits)
    return [
        one
        for one in findings
        if one.kind not in seen or not set(one.paths or one.classes) <= seen[one.kind]
    ]
