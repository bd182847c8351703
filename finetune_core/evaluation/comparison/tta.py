"""Gain of test-time augmentation: a run with and without it on the same images."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune_core.data.checks import some
from finetune_core.data.mirrored import directional
from finetune_core.evaluation.comparison.paired import (
    Claim,
    answers,
    count_only_one_right,
    is_different,
    networks_claim,
)
from finetune_core.evaluation.single_run.evaluate import evaluation, predicted_splits
from finetune_core.evaluation.single_run.metrics import Evaluation, evaluate
from finetune_core.evaluation.single_run.tta import FLIPS, with_flips
from finetune_core.formatting import accuracy_name, percent, points, things
from finetune_core.runs.store import Run


@dataclass(frozen=True)
class Augmented:
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

    def in_words(self) -> str:
        """Return one sentence: the accuracy with flips, its difference, and the verdict."""
        flipped, claim = self.with_flips, self.claim
        verdict = (
            ("better" if claim.gain > 0 else "worse")
            if self.different
            else "not distinguishable from without"
        )
        return (
            f"With flips: {accuracy_name(flipped.split).lower()} {percent(flipped.accuracy)} on "
            f"{things(flipped.images, 'image')}, {points(claim.gain)} points against without (95 % "
            f"interval {points(claim.low)} to {points(claim.high)}, McNemar p = {claim.p:.2g}): "
            f"{verdict}."
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


def augmented(run: Run) -> list[Augmented]:
    """Return each split that the run has predicted, the least biased first.

    Empty if flips were not measured (``predict_with_flips``).

    Raises:
        RunError: if the run has no predictions.
    """
    table = with_flips(run)
    if table is None:
        return []
    return [
        _compare_split(
            evaluation(run, split), evaluate(table, tuple(run.started["classes"]), split)
        )
        for split in predicted_splits(run)
    ]


def tta_json(run: Run) -> dict[str, Any] | None:
    """Return all results of test-time augmentation as plain values; None if it was not measured."""
    evaluations = augmented(run)
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
    if names := directional(run.started["classes"]):
        warnings.append(
            "A mirror image may show another class, or none: "
            f"{some([f'“{name}”' for name in names])} look like directions, letters or digits. "
            "This is a guess from the names; the paired test on these images decides."
        )
    if run.config.augmentation == "none" and not run.config.averaged:
        warnings.append(
            "It was not trained on mirror images (Augmentation: none), so it may not know them."
        )
    return warnings


def _compare_split(plain: Evaluation, flipped: Evaluation) -> Augmented:
    both = plain.predictions[["id", "correct"]].merge(
        flipped.predictions[["id", "correct"]], on="id", validate="1:1"
    )
    without, having = (
        answers(both[column].to_numpy(bool)[None]) for column in ("correct_x", "correct_y")
    )
    only_with, only_without = count_only_one_right(having, without)
    return Augmented(
        plain,
        flipped,
        networks_claim(having, without),
        int(np.rint(only_with)),
        int(np.rint(only_without)),
    )
