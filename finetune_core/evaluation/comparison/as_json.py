"""Comparison as plain values, as ``--json`` prints them."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from finetune_core.evaluation.comparison.arms import Arm, Member
from finetune_core.evaluation.comparison.measures import Measure
from finetune_core.evaluation.comparison.pair_text import describe_pair
from finetune_core.evaluation.comparison.pairs import Pair, PairVerdict
from finetune_core.evaluation.comparison.strategies import Interval
from finetune_core.runs.store import summarize_run


def _score_json(measure: Measure, score: Interval) -> dict[str, Any]:
    return {
        "score": score.value,
        "score_low": score.low,
        "score_high": score.high,
        "measure": measure.name,
    }


def _interval_json(interval: Interval) -> dict[str, float]:
    return {"accuracy": interval.value, "ci_low": interval.low, "ci_high": interval.high}


def run_json(arm: Arm, member: Member) -> dict[str, Any]:
    """Return the summary of a run, with its arm, score and cost."""
    seed = {
        "arm": arm.title,
        "seed": member.run.config.seed,
        "learning_rate": member.run.config.learning_rate,
    }
    return (
        summarize_run(member.run)
        | seed
        | _interval_json(member.accuracy)
        | _score_json(arm.measure, member.score)
        | asdict(member.cost)
    )


def arm_json(arm: Arm) -> dict[str, Any]:
    """Return settings, runs, scores, convergence and cost of an arm."""
    low, high = arm.range
    return {
        "arm": arm.title,
        "strategy": arm.config.strategy,
        "backbone": arm.config.backbone,
        "train_fraction": arm.config.train_fraction,
        "learning_rate": arm.config.learning_rate,
        "run_ids": [member.run.run_id for member in arm.members],
        "seeds": [member.run.config.seed for member in arm.members],
        **_interval_json(arm.accuracy),
        **_score_json(arm.measure, arm.score),
        "seed_deviation": arm.seed_deviation,
        "seed_low": low,
        "seed_high": high,
        "unfinished": arm.unfinished,
        "converged": arm.convergence.converged,
        "convergence": arm.convergence.reason,
        "ensemble": arm.ensemble and asdict(arm.ensemble),
        **asdict(arm.depth),
        **asdict(arm.cost),
    }


def pair_json(pair: Pair, arms: Sequence[Arm]) -> dict[str, Any]:
    """Return both claims under their names, and the wider claim beside them.

    ``about`` names the wider claim.
    """
    text = describe_pair(arms, pair)
    networks = _claim_json(pair.measure, pair.networks, text.networks)
    strategies = (
        _claim_json(pair.measure, pair.strategies, text.strategies) if pair.strategies else None
    )
    return {
        "a": arms[pair.a].title,
        "b": arms[pair.b].title,
        "about": pair.widest.claim.about,
        **(strategies or networks),
        "verdict": text.both,
        "mcnemar_p": pair.mcnemar_p,
        "mcnemar_share": pair.mcnemar_share,
        "image_error": pair.image_error,
        "seed_error": pair.seed_error,
        "seeds_needed": pair.seeds_needed,
        "only_a": pair.only_a,
        "only_b": pair.only_b,
        "networks": networks,
        "strategies": strategies,
    }


def _claim_json(measure: Measure, verdict: PairVerdict, text: str) -> dict[str, Any]:
    """Return a claim with the difference of the metric itself.

    For log loss a negative difference favours the first arm.
    """
    claim = verdict.claim
    difference, low, high = measure.to_difference(claim.gain, claim.low, claim.high)
    return {
        "difference": difference,
        "ci_low": low,
        "ci_high": high,
        "p": claim.p,
        "holm_p": verdict.holm_p,
        "different": verdict.different,
        "smallest_seen": verdict.smallest,
        "verdict": text,
    }
