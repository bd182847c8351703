"""Proposal of two networks to fine-tune.

One has the best linear probe. The other has the best published accuracy among those whose forecast
fits the budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_core.config.run_config import StrategyName
from finetune_core.evaluation.advice.probes import NetworkProbes
from finetune_core.evaluation.advice.ranking import Candidate, best_stages
from finetune_core.formatting import format_duration, format_percent

STRATEGY: StrategyName = "last_block"  # the proposals are fine-tuned with it

By = Literal["probe", "published"]


@dataclass(frozen=True)
class Proposal:
    """A network to fine-tune.

    Attributes:
        backbone: name of the network.
        image_size: side in pixels of the images that the network was probed on.
        strategy: the strategy to fine-tune with.
        by: criterion by which the network is the best.
        reason: one or two sentences.
        seconds: forecast of ``strategy``; None if it could not be timed.
    """

    backbone: str
    image_size: int
    strategy: StrategyName
    by: By
    reason: str
    seconds: float | None


def propose_networks(
    candidates: Sequence[Candidate], networks: Sequence[NetworkProbes], budget: float
) -> tuple[Proposal, ...]:
    """Propose two networks, or one if no other network fits.

    Args:
        candidates: the ranking, from ``rank_candidates``.
        networks: the measurements of each network.
        budget: seconds that fine-tuning one network may take.
    """
    if not candidates:
        return ()
    known = {network.backbone: network for network in networks}
    leaders = best_stages(candidates)
    first = _propose_best_probe(leaders, known[leaders[0].backbone], budget)
    second = _propose_second(
        [known[candidate.backbone] for candidate in leaders], first.backbone, budget
    )
    return (first, second) if second else (first,)


def _propose_best_probe(
    leaders: Sequence[Candidate], network: NetworkProbes, budget: float
) -> Proposal:
    best = leaders[0]
    reason = (
        f"The best probe: {format_percent(best.accuracy)} of the held-out images (95 % interval "
        f"{best.interval}, corrected for choosing the best), on the features of {best.stage}."
    )
    alike = [candidate.backbone for candidate in leaders[1:] if candidate.like_best]
    if alike:
        reason += f" Not distinguishable from {_join_names(alike)}."
    seconds = network.forecasts.get(STRATEGY)
    if seconds is not None and seconds > budget:
        reason += (
            f" Its forecast, {format_duration(seconds)}, is above the budget of {budget / 60:g} "
            "min."
        )
    return Proposal(network.backbone, network.image_size, STRATEGY, "probe", reason, seconds)


def _propose_second(
    networks: Sequence[NetworkProbes], first: str, budget: float
) -> Proposal | None:
    """Return the network with the best published accuracy within the budget, but the first.

    If the first proposal has the best published accuracy, return the network with the next best. If
    no accuracy is published, return the network with the next best probe.

    Args:
        networks: the measurements, the best probe first.
        first: name of the first proposal.
        budget: seconds that fine-tuning one network may take.
    """
    fitting = [network for network in networks if network.forecasts.get(STRATEGY, budget) <= budget]
    published = sorted(
        (network for network in fitting if network.top1 is not None),
        key=lambda network: -(network.top1 or 0.0),
    )
    others = [network for network in published if network.backbone != first]
    within = f"among those whose forecast fits the budget of {budget / 60:g} min"
    if others:
        reason = f"The best published ImageNet accuracy, {others[0].top1:.1f} %, {within}."
        if published[0].backbone == first:
            reason = (
                f"{first} has the best published ImageNet accuracy, too ({published[0].top1:.1f} "
                f"%). This is the next, {others[0].top1:.1f} %, {within}."
            )
        return _make_proposal(others[0], "published", reason)
    remaining = [network for network in fitting if network.backbone != first]
    if not remaining:
        return None
    unknown = "No other network here has" if published else "None of these networks has"
    reason = (
        f"{unknown} a published ImageNet accuracy that is stated where its weights come from, so "
        f"this is the next best probe {within}."
    )
    return _make_proposal(remaining[0], "probe", reason)


def _make_proposal(network: NetworkProbes, by: By, reason: str) -> Proposal:
    return Proposal(
        network.backbone, network.image_size, STRATEGY, by, reason, network.forecasts.get(STRATEGY)
    )


def _join_names(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
