"""Arms on two axes: on their own images, and on other ones, which are another data set or their own images made worse."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_core.evaluation.comparison.arms import Arm
from finetune_core.evaluation.comparison.compare import Comparison, compare_runs
from finetune_core.evaluation.comparison.measures import ACCURACY
from finetune_core.evaluation.comparison.strategies import Interval
from finetune_core.evaluation.intervals import wilson
from finetune_core.evaluation.single_run.robustness import CORRUPTIONS, Robustness, known_robustness
from finetune_core.evaluation.single_run.shift_files import MOST_LISTED, Shift, known_shifts, read_shift
from finetune_core.evaluation.single_run.shifted import drop_of, left_out_in_words
from finetune_core.runs.store import Run

SEVERITIES = {1: "mild", 2: "middle", 3: "strong"}


@dataclass(frozen=True)
class ShiftComparison:
    """Runs compared on their own images, and on those of another data set.

    Attributes:
        own, shifted: the same arms in the same order, by the same measure.
        shift: what the first run says of the data set.
    """

    own: Comparison
    shifted: Comparison
    shift: Shift

    @property
    def drops(self) -> tuple[Interval, ...]:
        """By how much each arm is worse on the other images, with its 95 % interval."""
        return tuple(drop_between(one, other.score) for one, other in zip(self.own.arms, self.shifted.arms, strict=True))

    def left_out(self) -> list[str]:
        """What of the data set was left out, or is known from training, run by run where that differs."""
        return left_out_of([member.run for arm in self.shifted.arms for member in arm.members], self.shift.fingerprint)

    def in_rows(self) -> tuple[list[str], list[list[str]]]:
        """(columns, rows) with one row per arm, for a reader."""
        return both_axes(self.own.arms, [arm.score for arm in self.shifted.arms])

    def to_json(self) -> dict[str, Any]:
        """Plain values: the comparison on the other images, as ``Comparison.to_json``, with ``drops`` (``arm, value, low, high``)."""
        drops = [
            {"arm": arm.title, "value": drop.value, "low": drop.low, "high": drop.high}
            for arm, drop in zip(self.own.arms, self.drops, strict=True)
        ]
        return self.shifted.to_json() | {"drops": drops}


def compare_shift(runs: Sequence[Run], fingerprint: str, measure: str = ACCURACY.name) -> ShiftComparison:
    """Compare runs on both axes.

    Args:
        fingerprint: of the other data set, which all of them have predicted.

    Raises:
        ConfigError: when there is no such measure.
        RunError: when one has not predicted that data set, or they did not predict the same images of either.
    """
    own, shifted = compare_runs(runs, measure), compare_runs(runs, measure, fingerprint)
    return ShiftComparison(own, shifted, read_shift(own.arms[0].members[0].run, fingerprint))


def both_axes(arms: Sequence[Arm], shifted: Sequence[Interval]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows) with one row per arm, for a reader: its score on its own images, on others, and the drop, with intervals."""
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
        for one, text in ((arm.score, measure.formatted), (other, measure.formatted), (drop_between(arm, other), measure.size)):
            cells += [text(one.value), f"{text(one.low)} to {text(one.high)}"]
        rows.append(cells)
    return columns, rows


def drop_between(arm: Arm, other: Interval) -> Interval:
    """By how much an arm's score is worse on other images: positive where it is, as of images that have nothing to do with each other."""
    ends = ((one.value, one.low, one.high) for one in (arm.score, other))
    return Interval(*drop_of(*ends, lower_is_better=arm.measure.lower_is_better))


def shifts_of(runs: Sequence[Run]) -> dict[str, Shift]:
    """Fingerprint -> what is known of it: the data sets that any of the runs has predicted, those of most runs first."""
    found = [shift for run in runs for shift in known_shifts(run)[0]]
    counts: dict[str, int] = {}
    for shift in found:
        counts[shift.fingerprint] = counts.get(shift.fingerprint, 0) + 1
    by_fingerprint = {shift.fingerprint: shift for shift in reversed(found)}
    order = sorted(counts, key=lambda one: -counts[one])
    return {one: by_fingerprint[one] for one in order[:MOST_LISTED]}


def left_out_of(runs: Sequence[Run], fingerprint: str) -> list[str]:
    """``left_out_in_words`` of all runs that have predicted a data set, each thing once."""
    return list(dict.fromkeys(line for run in runs for line in left_out_in_words(read_shift(run, fingerprint))))


Corrupted = tuple[str, int]  # one of ``CORRUPTIONS``, and its severity, 1 to 3


def corrupted_title(which: Corrupted) -> str:
    """``Gaussian noise, strong (0.38)``."""
    name, severity = which
    corruption = CORRUPTIONS[name]
    return f"{corruption.title}, {SEVERITIES[severity]} ({corruption.severities[severity - 1]:g})"


def corruptions_of(comparison: Comparison) -> list[Corrupted]:
    """Those that were measured for all runs of a comparison, on its split and on as many images."""
    known = [known_robustness(member.run, comparison.split) for arm in comparison.arms for member in arm.members]
    if len({one.images if one else 0 for one in known}) > 1 or not all(known):
        return []
    return [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]


def corrupted_accuracies(comparison: Comparison, which: Corrupted) -> tuple[list[Interval], int]:
    """Accuracy of each arm on its own images made worse, mean over the seeds, with Wilson's interval for other images; and on how many
    images.

    Only accuracies are kept of corrupted images, so nothing paired can be said.

    Args:
        which: one of ``corruptions_of``.
    """
    found, images = [], 0
    for arm in comparison.arms:
        known = [known_robustness(member.run, comparison.split) for member in arm.members]
        measured = [one for one in known if one]
        images = measured[0].images
        share = sum(_accuracy(one, which) for one in measured) / len(measured)
        low, high = wilson(share * images, images)
        found.append(Interval(share, float(low), float(high)))
    return found, images


def _accuracy(known: Robustness, which: Corrupted) -> float:
    row = (known.rows["corruption"] == which[0]) & (known.rows["severity"] == which[1])
    return float(known.rows.loc[row, "accuracy"].iloc[0])
