"""Comparison on two axes: the runs' own images, and another data set or corrupted images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetune_core.evaluation.comparison.arms import Arm
from finetune_core.evaluation.comparison.compare import Comparison, compare_runs
from finetune_core.evaluation.comparison.measures import ACCURACY
from finetune_core.evaluation.comparison.strategies import Interval
from finetune_core.evaluation.comparison.tables import load_table, make_key
from finetune_core.evaluation.intervals import wilson
from finetune_core.evaluation.single_run.corruptions import CLEAN, CorruptedSplit, list_corruptions
from finetune_core.evaluation.single_run.robustness_files import Robustness, load_robustness
from finetune_core.evaluation.single_run.shared_classes import SharedClasses, find_shared_classes
from finetune_core.evaluation.single_run.shift_files import (
    MOST_LISTED,
    Shift,
    load_shifts,
    read_shift,
)
from finetune_core.evaluation.single_run.shifted import compute_drop, describe_left_out
from finetune_core.runs.store import Run


@dataclass(frozen=True, repr=False)
class ShiftComparison:
    """Runs compared on their own images and on other ones.

    All comparisons have the same arms in the same order, and the same metric.

    Attributes:
        own: on all of their own images.
        matched: on their own images of the classes that both sides have; ``own`` if that is all of
            them.
        shifted: on the other images of these classes.
        other: the other images: a data set, as the first run recorded it, or a corruption of the
            runs' own images.
        shared: the classes that both sides have, and what is left out of either side.
    """

    own: Comparison
    matched: Comparison
    shifted: Comparison
    other: Shift | CorruptedSplit
    shared: SharedClasses

    @property
    def drops(self) -> tuple[Interval, ...]:
        """Drop of each arm from its own to the other images, with 95 % intervals.

        Both sides are images of the same classes.
        """
        return tuple(
            arm_drop(arm, other.score)
            for arm, other in zip(self.matched.arms, self.shifted.arms, strict=True)
        )

    def describe_left_out(self) -> list[str]:
        """Describe what was left out of either side, or is known from training.

        Runs are listed separately if they differ.
        """
        of_data = (
            list_left_out(_list_runs(self.shifted), self.other.fingerprint)
            if isinstance(self.other, Shift)
            else []
        )
        return [*of_data, *self.shared.to_sentences()]

    def to_rows(self) -> tuple[list[str], list[list[str]]]:
        """Return (columns, rows) with one row per arm, formatted as text."""
        return make_axes_table(self.matched.arms, [arm.score for arm in self.shifted.arms])

    def __repr__(self) -> str:
        return f"<{self.own!r}, on {self.other.described}: {self.shifted!r}>"

    def to_json(self) -> dict[str, Any]:
        """Return plain values.

        The comparison on the other images (``Comparison.to_json``), their source
        (``Shift.to_json``), the classes that are compared, ``in_distribution`` (``images``, and the
        ``arms`` on their own images of these classes) and ``drops``: ``arm, value, low, high`` of
        each arm.
        """
        arms = self.matched.arms
        own = {
            "images": self.matched.images,
            "arms": [{"arm": arm.title} | asdict(arm.score) for arm in arms],
        }
        drops = [
            {"arm": arm.title} | asdict(drop) for arm, drop in zip(arms, self.drops, strict=True)
        ]
        return (
            self.other.to_json()
            | self.shifted.to_json()
            | self.shared.to_json()
            | {"in_distribution": own, "drops": drops}
        )


def compare_shift(
    runs: Sequence[Run], on: str | CorruptedSplit, measure: str = ACCURACY.name
) -> ShiftComparison:
    """Compare runs on both axes.

    Args:
        runs: the runs.
        on: the other images, which all runs have predicted: the fingerprint of a data set, or a
            corruption of their own images.
        measure: name of the metric, a key of ``MEASURES``.

    Raises:
        ConfigError: if there is no such metric.
        RunError: if a run has not predicted those images, the runs did not predict the same images
            of either side, or both sides have no class in common.
    """
    own = compare_runs(runs, measure)
    first = _list_runs(own)[0]
    own_table, other_table = (load_table(make_key(first, images)) for images in (None, on))
    shared = find_shared_classes(
        first.started["classes"],
        own_table.loc[own_table["split"] == own.split, "label"].to_numpy(),
        other_table["label"].to_numpy(),
    )
    matched = compare_runs(runs, measure, classes=shared.names) if shared.own_only else own
    shifted = compare_runs(runs, measure, on, shared.names)
    other = on if isinstance(on, CorruptedSplit) else read_shift(first, on)
    return ShiftComparison(own, matched, shifted, other, shared)


def make_axes_table(
    arms: Sequence[Arm], shifted: Sequence[Interval]
) -> tuple[list[str], list[list[str]]]:
    """Return (columns, rows) with one row per arm, formatted as text.

    A row has the score on the arm's own images, the score on other images, and the drop, each with
    its interval.
    """
    columns = [
        "Strategy",
        "In-distribution",
        "95 % interval",
        "Shifted",
        "95 % interval (shifted)",
        f"Drop ({arms[0].measure.unit})",
        "95 % interval (drop)",
    ]
    rows = []
    for arm, other in zip(arms, shifted, strict=True):
        cells, measure = [arm.title], arm.measure
        for interval, text in (
            (arm.score, measure.format_value),
            (other, measure.format_value),
            (arm_drop(arm, other), measure.format_difference),
        ):
            cells += [text(interval.value), f"{text(interval.low)} to {text(interval.high)}"]
        rows.append(cells)
    return columns, rows


def arm_drop(arm: Arm, other: Interval) -> Interval:
    """Return by how much an arm's score is worse on other images, as ``compute_drop`` does."""
    ends = ((interval.value, interval.low, interval.high) for interval in (arm.score, other))
    return Interval(*compute_drop(*ends, lower_is_better=arm.measure.lower_is_better))


def list_shifts(runs: Sequence[Run]) -> dict[str, Shift]:
    """Return fingerprint -> ``Shift`` of the data sets that any run has predicted.

    The data sets that most runs have predicted come first.
    """
    shifts = [shift for run in runs for shift in load_shifts(run)[0]]
    counts: dict[str, int] = {}
    for shift in shifts:
        counts[shift.fingerprint] = counts.get(shift.fingerprint, 0) + 1
    by_fingerprint = {shift.fingerprint: shift for shift in reversed(shifts)}
    order = sorted(counts, key=lambda fingerprint: -counts[fingerprint])
    return {fingerprint: by_fingerprint[fingerprint] for fingerprint in order[:MOST_LISTED]}


def list_left_out(runs: Sequence[Run], fingerprint: str) -> list[str]:
    """Return ``describe_left_out`` of all runs on a data set, without repeated lines."""
    return list(
        dict.fromkeys(
            line for run in runs for line in describe_left_out(read_shift(run, fingerprint))
        )
    )


def list_common_corruptions(comparison: Comparison) -> list[CorruptedSplit]:
    """Return the corruptions that were measured for all runs of a comparison.

    They must have been measured on its split, on the same number of images.
    """
    known = [load_robustness(run, comparison.split) for run in _list_runs(comparison)]
    if len({robustness.images if robustness else 0 for robustness in known}) > 1 or not all(known):
        return []
    return [which for which in list_corruptions(comparison.split) if which.corruption != CLEAN]


def list_runs_without_predictions(comparison: Comparison) -> list[Run]:
    """Return runs whose robustness was measured by an earlier version.

    It stored accuracies but no predictions, so paired tests are impossible.
    """
    known = [(run, load_robustness(run, comparison.split)) for run in _list_runs(comparison)]
    return [run for run, robustness in known if robustness and not robustness.predicted]


def compute_corrupted_accuracies(
    comparison: Comparison, which: CorruptedSplit
) -> tuple[list[Interval], int]:
    """Return the accuracy of each arm on its corrupted images, and the number of images.

    The accuracy is the mean over the seeds, with Wilson's interval for other images. Nothing is
    known where ``list_runs_without_predictions`` returns any run.

    Args:
        comparison: the comparison.
        which: one of ``list_common_corruptions``.
    """
    intervals, images = [], 0
    for arm in comparison.arms:
        measured = [one for run in arm.runs if (one := load_robustness(run, which.split))]
        images = measured[0].images
        share = sum(_corrupted_accuracy(robustness, which) for robustness in measured) / len(
            measured
        )
        low, high = wilson(share * images, images)
        intervals.append(Interval(share, float(low), float(high)))
    return intervals, images


def _corrupted_accuracy(known: Robustness, which: CorruptedSplit) -> float:
    row = (known.rows["corruption"] == which.corruption) & (
        known.rows["severity"] == which.severity
    )
    return float(known.rows.loc[row, "accuracy"].iloc[0])


def _list_runs(comparison: Comparison) -> list[Run]:
    return [run for arm in comparison.arms for run in arm.runs]
