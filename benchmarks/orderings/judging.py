"""Does a claim hold? The comparison's own verdict on strategies, from predictions of the same images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.orderings.protocol import Axis, Claim
from finetune_core.evaluation.comparison.measures import measure_of
from finetune_core.evaluation.comparison.paired import Answers, measured
from finetune_core.evaluation.comparison.pairs import PairVerdict, compare_pairs, known_variances
from finetune_core.evaluation.comparison.strategies import Interval, measure_interval

Outcome = Literal["reproduced", "opposite", "not distinguishable", "could not be tested"]


@dataclass(frozen=True)
class Predictions:
    """What the arms said of the same images.

    Attributes:
        labels: int ``[images]``.
        logits: of each arm, float ``[seeds, images, classes]``.
        in_steps: the arms that trained in steps; what a seed adds is estimated over these together.
    """

    labels: np.ndarray
    logits: Mapping[str, np.ndarray]
    in_steps: frozenset[str]


@dataclass(frozen=True)
class Judged:
    """A claim and its outcome.

    Attributes:
        difference: of the metric, ``better`` less ``than``, with its 95 % interval for other images and other seeds; None where the
            claim could not be tested, and ``why`` says why.
        p: corrected over all pairs of arms (Holm).
    """

    claim: Claim
    outcome: Outcome
    difference: Interval | None = None
    p: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Standing:
    """The metric of an arm on one axis, mean over its seeds, with its 95 % interval; and seed by seed."""

    arm: str
    on: Axis
    score: Interval
    seeds: tuple[float, ...]


def untested(claims: Sequence[Claim], why: str) -> list[Judged]:
    return [Judged(claim, "could not be tested", why=why) for claim in claims]


def judge(
    claims: Sequence[Claim], predictions: Mapping[Axis, Predictions], measure: str = "accuracy"
) -> tuple[list[Judged], list[Standing]]:
    """Judge every claim, and say how each arm stands on each axis.

    Without a margin a claim holds where the comparison calls the strategies different and ``better`` is ahead: the whole interval and
    Holm's p. With one it holds where the whole interval is above minus the margin, and is reversed where it is below.
    """
    found: dict[Axis, _Axis] = {axis: _axis(one, measure) for axis, one in predictions.items()}
    standings = [
        Standing(arm, axis, score, tuple(found[axis].answers[arm].values.mean(1).tolist()))
        for axis in found
        for arm, score in found[axis].scores.items()
    ]
    return [_judged(claim, found.get(claim.on)) for claim in claims], standings


def overall(judged: Sequence[Judged]) -> Outcome:
    """Of the whole ordering: reproduced where every claim is; opposite where any is."""
    outcomes = {one.outcome for one in judged}
    if not outcomes or outcomes == {"could not be tested"}:
        return "could not be tested"
    if outcomes == {"reproduced"}:
        return "reproduced"
    return "opposite" if "opposite" in outcomes else "not distinguishable"


@dataclass(frozen=True)
class _Axis:
    answers: Mapping[str, Answers]
    scores: Mapping[str, Interval]
    verdicts: Mapping[tuple[str, str], PairVerdict | None]


def _axis(predictions: Predictions, measure: str) -> _Axis:
    arms = list(predictions.logits)
    answered = measured(measure_of(measure), predictions.labels, list(predictions.logits.values()))
    variances = known_variances(answered, [arm in predictions.in_steps for arm in arms])
    pairs = compare_pairs(answered, [True] * len(arms), variances)
    return _Axis(
        dict(zip(arms, answered, strict=True)),
        {
            arm: measure_interval(one, variance)
            for arm, one, variance in zip(arms, answered, variances, strict=True)
        },
        {(arms[pair.a], arms[pair.b]): pair.strategies for pair in pairs},
    )


def _judged(claim: Claim, axis: _Axis | None) -> Judged:
    if axis is None:
        return Judged(
            claim, "could not be tested", why=f"there are no predictions on {claim.on} images"
        )
    forwards = (claim.better, claim.than) in axis.verdicts
    pair = (claim.better, claim.than) if forwards else (claim.than, claim.better)
    verdict = axis.verdicts.get(pair)
    if verdict is None:
        return Judged(
            claim,
            "could not be tested",
            why="a claim about ways to train needs several seeds of both arms",
        )
    one, sign = verdict.claim, 1 if forwards else -1
    low, high = sorted((sign * one.low, sign * one.high))
    difference = Interval(sign * one.gain, low, high)
    return Judged(claim, _outcome(claim, difference, verdict.different), difference, verdict.holm_p)


def _outcome(claim: Claim, difference: Interval, different: bool) -> Outcome:
    if claim.margin == 0 and not different:
        return "not distinguishable"
    if difference.low > -claim.margin:
        return "reproduced"
    return "opposite" if difference.high < -claim.margin else "not distinguishable"
