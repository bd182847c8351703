"""Outcomes of claims, by the comparison's verdict on strategies for the same images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.orderings.protocol import Axis, Claim
from finetune_core.evaluation.comparison.measures import get_measure
from finetune_core.evaluation.comparison.paired import ArmPredictions, summarize_measure
from finetune_core.evaluation.comparison.pairs import (
    PairVerdict,
    compare_pairs,
    pool_seed_variances,
)
from finetune_core.evaluation.comparison.strategies import Interval, measure_interval

Outcome = Literal["reproduced", "opposite", "not distinguishable", "could not be tested"]


@dataclass(frozen=True)
class Predictions:
    """Predictions of the arms for the same images.

    Attributes:
        labels: int ``[images]``.
        logits: arm -> float ``[seeds, images, classes]``.
        in_steps: the arms that trained in steps. The seeds' variance is pooled over these.
    """

    labels: np.ndarray
    logits: Mapping[str, np.ndarray]
    in_steps: frozenset[str]


@dataclass(frozen=True)
class Judgement:
    """A claim and its outcome.

    Attributes:
        claim: the claim.
        outcome: its outcome.
        difference: metric of ``better`` minus that of ``than``, with its 95 % interval for other
            images and other seeds. None if the claim could not be tested.
        p: p-value corrected over all pairs of arms (Holm).
        why: why the claim could not be tested.
    """

    claim: Claim
    outcome: Outcome
    difference: Interval | None = None
    p: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Standing:
    """Metric of an arm on one axis.

    Attributes:
        arm: the arm.
        on: the axis.
        score: mean over seeds, with its 95 % interval.
        seeds: the metric of each seed.
    """

    arm: str
    on: Axis
    score: Interval
    seeds: tuple[float, ...]


def mark_untested(claims: Sequence[Claim], why: str) -> list[Judgement]:
    """Return the claims as not tested, with the reason."""
    return [Judgement(claim, "could not be tested", why=why) for claim in claims]


def judge(
    claims: Sequence[Claim], predictions: Mapping[Axis, Predictions], measure: str = "accuracy"
) -> tuple[list[Judgement], list[Standing]]:
    """Judge every claim, and return the score of each arm on each axis.

    Without a margin, a claim holds if the comparison calls the strategies different (by the whole
    interval and Holm's p) and ``better`` is ahead. With a margin, a claim holds if the whole
    interval lies above minus the margin, and is opposite if the interval lies below.
    """
    results: dict[Axis, _AxisResult] = {
        axis: _evaluate_axis(one, measure) for axis, one in predictions.items()
    }
    standings = [
        Standing(arm, axis, score, tuple(results[axis].answers[arm].values.mean(1).tolist()))
        for axis in results
        for arm, score in results[axis].scores.items()
    ]
    return [_judge_claim(claim, results.get(claim.on)) for claim in claims], standings


def combine_outcomes(judged: Sequence[Judgement]) -> Outcome:
    """Return the outcome of a whole ordering.

    It is reproduced if every claim is, and opposite if any claim is.
    """
    outcomes = {one.outcome for one in judged}
    if not outcomes or outcomes == {"could not be tested"}:
        return "could not be tested"
    if outcomes == {"reproduced"}:
        return "reproduced"
    return "opposite" if "opposite" in outcomes else "not distinguishable"


@dataclass(frozen=True)
class _AxisResult:
    answers: Mapping[str, ArmPredictions]
    scores: Mapping[str, Interval]
    verdicts: Mapping[tuple[str, str], PairVerdict | None]


def _evaluate_axis(predictions: Predictions, measure: str) -> _AxisResult:
    arms = list(predictions.logits)
    answers = summarize_measure(
        get_measure(measure), predictions.labels, list(predictions.logits.values())
    )
    variances = pool_seed_variances(answers, [arm in predictions.in_steps for arm in arms])
    pairs = compare_pairs(answers, [True] * len(arms), variances)
    return _AxisResult(
        dict(zip(arms, answers, strict=True)),
        {
            arm: measure_interval(one, variance)
            for arm, one, variance in zip(arms, answers, variances, strict=True)
        },
        {(arms[pair.a], arms[pair.b]): pair.strategies for pair in pairs},
    )


def _judge_claim(claim: Claim, axis: _AxisResult | None) -> Judgement:
    if axis is None:
        return Judgement(
            claim, "could not be tested", why=f"there are no predictions on {claim.on} images"
        )
    forwards = (claim.better, claim.than) in axis.verdicts
    pair = (claim.better, claim.than) if forwards else (claim.than, claim.better)
    verdict = axis.verdicts.get(pair)
    if verdict is None:
        return Judgement(
            claim,
            "could not be tested",
            why="a claim about ways to train needs several seeds of both arms",
        )
    one, sign = verdict.claim, 1 if forwards else -1
    low, high = sorted((sign * one.low, sign * one.high))
    difference = Interval(sign * one.gain, low, high)
    return Judgement(
        claim, _decide_outcome(claim, difference, verdict.different), difference, verdict.holm_p
    )


def _decide_outcome(claim: Claim, difference: Interval, different: bool) -> Outcome:
    if claim.margin == 0 and not different:
        return "not distinguishable"
    if difference.low > -claim.margin:
        return "reproduced"
    return "opposite" if difference.high < -claim.margin else "not distinguishable"
