"""Gain of test-time augmentation: a run with and without it on the same images."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune_core.data.checks import join_names
from finetune_core.data.mirrored import find_directional_classes
from finetune_core.evaluation.comparison.paired import (
    Claim,
    compare_networks,
    count_only_one_right,
    is_different,
    summarize_accuracy,
)
from finetune_core.evaluation.single_run.evaluate import evaluation, list_predicted_splits
from finetune_core.evaluation.single_run.metrics import Evaluation, evaluate
from finetune_core.evaluation.single_run.tta import FLIPS, load_flip_predictions
from finetune_core.formatting import accuracy_name, format_percent, format_points, pluralize
from finetune_core.runs.store import Run


@dataclass(frozen=True)
class FlipEvaluation:
    """A split with flips and without.

    Attributes:
        plain: the evaluation without flips.
        with_flips: the evaluation with flips.
        claim: gain of accuracy with flips; its p-value is McNemar's, exact.
        only_with: number of images that are classified correctly with flips only.
        only_without: number of images that are classified correctly without flips only.
    """

    plain: Evaluation
    with_flips: Evaluation
    claim: Claim
    only_with: int
    only_without: int

    @property
    def different(self) -> bool:
        """True if the two can be distinguished."""
        return is_different(self.claim, self.claim.p)

    def to_text(self) -> str:
        """Return one sentence: the accuracy with flips, its difference, and the verdict."""
        flipped, claim = self.with_flips, self.claim
        verdict = (
            ("better" if claim.gain > 0 else "worse")
            if self.different
            else "not distinguishable from without"
        )
        return (
            f"With flips: {accuracy_name(flipped.split).lower()} "
            f"{format_percent(flipped.accuracy)} on {pluralize(flipped.images, 'image')}, "
            f"{format_points(claim.gain)} points against without (95 % interval "
            f"{format_points(claim.low)} to {format_points(claim.high)}, McNemar p = "
            f"{claim.p:.2g}): {verdict}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        flipped = self.with_flips
        return {
            "split": flipped.split,
            "images": flipped.images,
            "accuracy": flipped.accuracy,
            "accuracy_low": flipped.low,
            "accuracy_high": flipped.high,
            "loss": flipped.loss,
            "accuracy_without": self.plain.accuracy,
            "loss_without": self.plain.loss,
            "difference": self.claim.gain,
            "difference_low": self.claim.low,
            "difference_high": self.claim.high,
            "p": self.claim.p,
            "different": self.different,
            "only_with": self.only_with,
            "only_without": self.only_without,
        }


def evaluate_flips(run: Run) -> list[FlipEvaluation]:
    """Return each split that the run has predicted, the least biased first.

    Empty if flips were not measured (``predict_with_flips``).

    Raises:
        RunError: if the run has no predictions.
    """
    table = load_flip_predictions(run)
    if table is None:
        return []
    return [
        _compare_split(
            evaluation(run, split), evaluate(table, tuple(run.started["classes"]), split)
        )
        for split in list_predicted_splits(run)
    ]


def tta_json(run: Run) -> dict[str, Any] | None:
    """Return all results of test-time augmentation as plain values; None if it was not measured."""
    evaluations = evaluate_flips(run)
    if not evaluations:
        return None
    return {
        "how": FLIPS,
        "warnings": flip_warnings(run),
        "splits": [result.to_json() for result in evaluations],
    }


def flip_warnings(run: Run) -> list[str]:
    """Return reasons against mirror images of a run's classes, in sentences."""
    warnings = []
    if names := find_directional_classes(run.started["classes"]):
        warnings.append(
            "A mirror image may show another class, or none: "
            f"{join_names([f'“{name}”' for name in names])} look like directions, letters or "
            "digits. This is a guess from the names; the paired test on these images decides."
        )
    if run.config.augmentation == "none" and not run.config.averaged:
        warnings.append(
            "It was not trained on mirror images (Augmentation: none), so it may not know them."
        )
    return warnings


def _compare_split(plain: Evaluation, flipped: Evaluation) -> FlipEvaluation:
    both = plain.predictions[["id", "correct"]].merge(
        flipped.predictions[["id", "correct"]], on="id", validate="1:1"
    )
    without, having = (
        summarize_accuracy(both[column].to_numpy(bool)[None])
        for column in ("correct_x", "correct_y")
    )
    only_with, only_without = count_only_one_right(having, without)
    return FlipEvaluation(
        plain,
        flipped,
        compare_networks(having, without),
        int(np.rint(only_with)),
        int(np.rint(only_without)),
    )
