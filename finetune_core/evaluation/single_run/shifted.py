"""Evaluation on another data set beside the run's own images: the same numbers, and their drops."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from finetune_core.data.splits import SHIFTED
from finetune_core.evaluation.intervals import difference_interval
from finetune_core.evaluation.single_run.evaluate import (
    CalibrationPair,
    compute_table_calibration,
    list_predicted_splits,
    score_evaluation,
)
from finetune_core.evaluation.single_run.metrics import Evaluation, evaluate
from finetune_core.evaluation.single_run.robustness_files import load_robustness
from finetune_core.evaluation.single_run.run_evaluation import RunEvaluation, evaluate_run
from finetune_core.evaluation.single_run.scores import (
    NAMES,
    Scores,
    format_fraction,
    format_range,
    format_value,
    is_percent,
)
from finetune_core.evaluation.single_run.shared_classes import SharedClasses, find_shared_classes
from finetune_core.evaluation.single_run.shift_files import (
    Shift,
    load_shifted_predictions,
    read_shift,
    shift_stamp,
)
from finetune_core.evaluation.single_run.slices import compute_slices, load_image_facts
from finetune_core.files import Stamp
from finetune_core.formatting import (
    SPLIT_TITLES,
    format_interval,
    format_percent,
    format_points,
    pluralize,
)
from finetune_core.runs.store import Run
from finetune_core.training.predictions import (
    FINAL_PRECISION,
    load_predictions,
    predictions_mtime,
)

IntervalTuple = tuple[float, float, float]  # a value, and the ends of its 95 % interval

LOWER_IS_BETTER = ("log_loss", "brier", "ece")


@dataclass(frozen=True, repr=False)
class ShiftedEvaluation(RunEvaluation):
    """An evaluation on the images of another data set, beside one on the run's own images.

    Both are restricted to the classes that both have images of. The temperature of ``calibrated``
    was fitted on the run's own validation images; ``slices`` are empty.

    Attributes:
        shift: the other data set, and what of it is left out.
        shared: the classes that are compared, and what is left out of either side.
        own: the same run on its own images; ``robustness`` is that of all its classes.
        drops: one row per number of ``scores.table`` that both have: ``name``, and by how much it
            is worse here, ``value, low, high``: own minus shifted, or, if lower is better, shifted
            minus own.
    """

    shift: Shift
    shared: SharedClasses
    own: RunEvaluation
    drops: pd.DataFrame

    @property
    def precision(self) -> str | None:
        """Precision of the predictions, always fp32."""
        return FINAL_PRECISION

    @property
    def drop(self) -> tuple[float, float, float]:
        """Drop of the accuracy with its 95 % interval (Newcombe 1998)."""
        return compute_drop(_accuracy_interval(self.own), _accuracy_interval(self))

    def describe_drop(self) -> str:
        """Return text on how much lower the accuracy is here than on the run's own images."""
        value, low, high = self.drop
        own = (
            f"{format_percent(self.own.accuracy)} on "
            f"{pluralize(self.own.images, f'{SPLIT_TITLES[self.own.split].lower()} image')}"
        )
        if not self.shared.is_complete:
            own += f" of the same {pluralize(len(self.shared.names), 'class', 'classes')}"
        text = f"{format_points(abs(value))} points {'below' if value >= 0 else 'above'} the {own}"
        return (
            f"{text} (95 % interval of the drop {format_points(low)} to {format_points(high)} "
            "points)"
        )

    def to_text(self) -> str:
        """Return one line: the accuracy with its interval, the loss, and the drop."""
        return f"{super().to_text()}, {self.describe_drop()}"

    def list_caveats(self) -> list[str]:
        """Return notes to read before the numbers, with what was left out."""
        return [
            *self.own.list_caveats(),
            *describe_left_out(self.shift),
            *self.shared.to_sentences(),
        ]

    def reference_points(self) -> None:
        """Return None: there are no reference points on other images."""
        return None

    def score_rows(self) -> tuple[list[str], list[list[str]]]:
        """Return (columns, rows) with one row per number, formatted as text.

        A row has the number in-distribution, the number on shifted images, and the drop, each with
        its interval.
        """
        columns = [
            "Metric",
            "In-distribution",
            "95 % interval",
            "Shifted",
            "95 % interval (shifted)",
            "Drop",
            "95 % interval (drop)",
        ]
        sides = [_group_by_name(evaluation.scores.table) for evaluation in (self.own, self)]
        rows = []
        for name, drop in _group_by_name(self.drops).items():
            cells = [NAMES[name]]
            for value, low, high in (sides[0][name], sides[1][name]):
                cells += [format_value(name, value), format_range(name, low, high)]
            lost, least, most = (_format_drop(name, end) for end in drop)
            span = "" if np.isnan(drop[1]) else f"{least} to {most}"
            rows.append([*cells, f"{lost} points" if is_percent(name) else lost, span])
        return columns, rows

    def class_rows(self) -> tuple[list[str], list[list[str]]]:
        """Return (columns, rows) with one row per class that has images here.

        A row has the recall on both sides and the drop. The lowest recall comes first.
        """
        columns = [
            "Class",
            "Images",
            "Shifted recall",
            "95 % interval",
            "In-distribution recall",
            "Drop",
            "95 % interval (drop)",
        ]
        both = self.per_class.merge(
            self.own.per_class, left_index=True, right_index=True, suffixes=("", "_own")
        )
        rows = []
        for row in both[both["images"] > 0].sort_values(["recall", "class"]).to_dict("records"):
            shifted, own = _recall_interval(row), _recall_interval(row, "_own")
            drop = compute_drop(own, shifted)
            cells = [
                row["class"],
                f"{row['images']:,}",
                format_percent(shifted[0]),
                format_interval(shifted[1], shifted[2]),
            ]
            span = f"{format_points(drop[1])} to {format_points(drop[2])}"
            rows.append([*cells, format_percent(own[0]), format_points(drop[0]), span])
        return columns, rows


def evaluate_shifted(run: Run, fingerprint: str, split: str | None = None) -> ShiftedEvaluation:
    """Evaluate a run's predictions for another data set.

    Args:
        run: the run.
        fingerprint: fingerprint of the data set.
        split: split of the run's own images to compare with; the least biased one if None.

    Raises:
        RunError: if the run has not predicted that data set or its own images, if the predictions
            are damaged, or if both have no class in common.
    """
    split = split or list_predicted_splits(run)[0]
    own = evaluate_run(run, split, load_robustness(run, split))
    shift = read_shift(run, fingerprint)
    changed = predictions_mtime(run.run_dir), shift_stamp(run, fingerprint)
    shared = _find_shared_classes(run.run_dir, fingerprint, changed, own.classes, split)
    result, shifted_scores, confidence = _evaluate_shifted(
        run.run_dir, fingerprint, changed, own.classes, shared.labels
    )
    if shared.own_only:
        own = _restrict(run, own, shared)
    return ShiftedEvaluation(
        **vars(result),
        run=run,
        scores=shifted_scores,
        calibrated=confidence,
        slices=own.slices.iloc[:0],
        robustness=None,
        shift=shift,
        shared=shared,
        own=own,
        drops=_compute_drops(own, result, shifted_scores),
    )


def _format_drop(name: str, drop: float) -> str:
    """Format a drop of a score; shares are given in points."""
    return format_points(drop) if is_percent(name) else format_fraction(drop).replace("-", "−")


def get_data(run: Run, result: Evaluation) -> str:
    """Return the data set whose images an evaluation is about."""
    return result.shift.data if isinstance(result, ShiftedEvaluation) else run.config.data


def compute_drop(
    own: IntervalTuple, shifted: IntervalTuple, *, lower_is_better: bool = False
) -> IntervalTuple:
    """Return by how much a number is worse on other images, with a 95 % interval.

    The drop is positive if it is worse. The interval is that of two samples that share no image,
    because exact copies of a run's own images are left out of the other data. For corrupted copies
    of its own images it is wider than necessary.
    """
    return (
        difference_interval(shifted, own) if lower_is_better else difference_interval(own, shifted)
    )


def describe_left_out(shift: Shift) -> list[str]:
    """Describe what of the data set was left out, renamed, or known from training.

    Empty if there is nothing to report.
    """
    sentences = []
    if shift.respelled:
        named = ", ".join(f"“{theirs}” as “{ours}”" for theirs, ours in shift.respelled.items())
        sentences.append(f"Class names that differ in case or spaces were matched: {named}.")
    if shift.unknown:
        named = ", ".join(
            f"“{name}” ({pluralize(count, 'image')})" for name, count in shift.unknown.items()
        )
        sentences.append(f"Left out, because the run has no such class: {named}.")
    if shift.unreadable:
        sentences.append(
            f"Left out, because they cannot be read: {pluralize(shift.unreadable, 'image')}."
        )
    copies = shift.copies
    own = {"training": copies.training, "validation": copies.validation, "test": copies.test}
    if counts := [f"{pluralize(count, f'{split} image')}" for split, count in own.items() if count]:
        sentences.append(
            f"Left out, because they are exact copies of the run's own images: {', '.join(counts)}."
        )
    if copies.near:
        sentences.append(
            f"Contamination: {pluralize(copies.near, 'image')} may be near-copies of training "
            "images; they are not left out, and can make the accuracy look better than it is."
        )
    if copies.earlier:
        sentences.append(
            f"Contamination: {pluralize(copies.earlier, 'image')} may be copies of training images "
            "of a run that this one started from; they are not left out, and can make the "
            "accuracy look better than it is."
        )
    return [*sentences, *filter(None, [copies.problem])]


@lru_cache(maxsize=64)
def _find_shared_classes(
    run_dir: Path,
    fingerprint: str,
    _changed: tuple[int, Stamp | None],
    classes: tuple[str, ...],
    split: str,
) -> SharedClasses:
    own = load_predictions(run_dir, len(classes))
    return find_shared_classes(
        classes,
        own.loc[own["split"] == split, "label"].to_numpy(),
        load_shifted_predictions(run_dir, fingerprint, len(classes))["label"].to_numpy(),
    )


def _restrict(run: Run, own: RunEvaluation, shared: SharedClasses) -> RunEvaluation:
    """Return a run's evaluation on its own images of the shared classes."""
    changed = predictions_mtime(run.run_dir)
    result, own_scores, confidence = _evaluate_own(
        run.run_dir, changed, own.classes, own.split, shared.labels
    )
    facts = load_image_facts(run.config.data, result.predictions["id"])
    return replace(
        own,
        **vars(result),
        scores=own_scores,
        calibrated=confidence,
        slices=compute_slices(result, facts.table),
    )


@lru_cache(maxsize=16)
def _evaluate_own(
    run_dir: Path, _changed: int, classes: tuple[str, ...], split: str, labels: tuple[int, ...]
) -> tuple[Evaluation, Scores, CalibrationPair]:
    """Evaluate a run's own images of some classes; the temperature is fitted on images of all."""
    table = load_predictions(run_dir, len(classes)).sort_values("id", ignore_index=True)
    table = table[(table["split"] != split) | table["label"].isin(labels)].reset_index(drop=True)
    result = evaluate(table, classes, split)
    return result, score_evaluation(result), compute_table_calibration(table, split)


@lru_cache(maxsize=16)
def _evaluate_shifted(
    run_dir: Path,
    fingerprint: str,
    _changed: tuple[int, Stamp | None],
    classes: tuple[str, ...],
    labels: tuple[int, ...],
) -> tuple[Evaluation, Scores, CalibrationPair]:
    """Evaluate the shifted images of some classes, once for each table of predictions."""
    table = load_shifted_predictions(run_dir, fingerprint, len(classes))
    table = table[table["label"].isin(labels)].reset_index(drop=True)
    result = evaluate(table, classes, SHIFTED)
    own = load_predictions(run_dir, len(classes))
    return (
        result,
        score_evaluation(result),
        compute_table_calibration(pd.concat([own, table], ignore_index=True), SHIFTED),
    )


def _compute_drops(own: RunEvaluation, result: Evaluation, shifted_scores: Scores) -> pd.DataFrame:
    both = own.scores.table.merge(shifted_scores.table, on="name", suffixes=("", "_shifted"))
    rows = [
        compute_drop(
            (row["value"], row["low"], row["high"]),
            (row["value_shifted"], row["low_shifted"], row["high_shifted"]),
            lower_is_better=row["name"] in LOWER_IS_BETTER,
        )
        for row in both.to_dict("records")
    ]
    return pd.DataFrame(rows, columns=["value", "low", "high"]).assign(name=both["name"])[
        ["name", "value", "low", "high"]
    ]


def _group_by_name(table: pd.DataFrame) -> dict[str, IntervalTuple]:
    return {
        row["name"]: (row["value"], row["low"], row["high"]) for row in table.to_dict("records")
    }


def _accuracy_interval(result: Evaluation) -> IntervalTuple:
    return result.accuracy, result.low, result.high


def _recall_interval(row: Mapping[Hashable, Any], suffix: str = "") -> IntervalTuple:
    return row[f"recall{suffix}"], row[f"recall_low{suffix}"], row[f"recall_high{suffix}"]
