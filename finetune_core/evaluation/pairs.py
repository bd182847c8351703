"""Both claims about each pair of arms, corrected over all pairs, with what they could have shown and what would show more."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from finetune_core.evaluation.paired import (
    Answers,
    Claim,
    holm,
    image_variance,
    is_different,
    mcnemar_p,
    networks_claim,
    only_one_right,
    together,
)
from finetune_core.evaluation.power import seeds_needed, smallest_seen
from finetune_core.evaluation.strategies import SeedVariance, seed_variances, strategies_claim


@dataclass(frozen=True)
class Verdict:
    """A claim, and what follows from it.

    Attributes:
        holm_p: its p, corrected over all pairs of the comparison.
        different: ``holm_p`` is at most 5 %, and the interval leaves 0 out; of strategies, also that their networks are different.
        smallest: the smallest true difference that would have shown four times out of five, at the strictest step of Holm's correction.
    """

    claim: Claim
    holm_p: float
    different: bool
    smallest: float


@dataclass(frozen=True)
class Pair:
    """Two arms, by their places among the arms; everything is of the first less the second.

    Attributes:
        networks: about the networks that were trained.
        strategies: about the strategies; None where one arm cannot speak for its strategy, see ``judge_pairs``.
        mcnemar_p: exact McNemar tests of each network of the first with each of the second, put together by Rüger's rule, which holds
            whatever their dependence; it says nothing of other seeds.
        mcnemar_share: the share of these tests with a p of at most 5 %.
        image_error: standard error from the choice of images.
        seed_error: from the choice of seeds, beyond what images explain; None where ``strategies`` is.
        seeds_needed: seeds an arm that would most likely show a difference as large as this one; None where it has shown, where
            nobody can tell, and where seeds alone would not do.
        only_a, only_b: images that only one of two networks gets right; means over all pairs of networks.
    """

    a: int
    b: int
    images: int
    networks: Verdict
    strategies: Verdict | None
    mcnemar_p: float
    mcnemar_share: float
    image_error: float
    seed_error: float | None
    seeds_needed: int | None
    only_a: float
    only_b: float

    @property
    def difference(self) -> float:
        return self.networks.claim.difference

    @property
    def widest(self) -> Verdict:
        """About the strategies, where that can be judged, else about the networks."""
        return self.strategies or self.networks


def judge_pairs(arms: Sequence[Answers], speaks: Sequence[bool]) -> tuple[Pair, ...]:
    """Judge every pair of arms.

    Args:
        speaks: for each arm, whether it can speak for its strategy, given several seeds; runs that were stopped cannot.
    """
    places = list(combinations(range(len(arms)), 2))
    variances = seed_variances(arms)
    variances = [one if can else None for one, can in zip(variances, speaks, strict=True)]
    networks = [networks_claim(arms[a], arms[b]) for a, b in places]
    strategies = [strategies_claim(arms[a], arms[b], (variances[a], variances[b])) for a, b in places]
    # A claim about strategies is one about networks, and more: its p is never less. It matters where few images tell sides apart.
    strategies = [one and replace(one, p=max(one.p, other.p)) for one, other in zip(strategies, networks, strict=True)]
    corrected = holm([claim.p for claim in networks])
    # Over all pairs, those that cannot be judged yet counted in: another seed must not take a verdict back.
    wider = holm([claim.p if claim else 1.0 for claim in strategies])
    return tuple(
        _pair(place, arms, networks[at], corrected[at], strategies[at], wider[at], variances, len(places))
        for at, place in enumerate(places)
    )


def _pair(
    place: tuple[int, int],
    arms: Sequence[Answers],
    networks: Claim,
    networks_p: float,
    strategies: Claim | None,
    strategies_p: float,
    variances: Sequence[SeedVariance | None],
    pairs: int,
) -> Pair:
    a, b = (arms[at] for at in place)
    only_a, only_b = only_one_right(a, b)
    tests = mcnemar_p(a.correct, b.correct)
    of_images = image_variance(a.by_image - b.by_image)
    single = a.seeds == b.seeds == 1
    discordance = (only_a + only_b) / a.images if single else None
    judged = Verdict(
        networks, networks_p, is_different(networks, networks_p), smallest_seen(networks, a.images, pairs, discordance)
    )
    wider, seed_error, needed = None, None, None
    if strategies:
        different = judged.different and is_different(strategies, strategies_p)
        wider = Verdict(strategies, strategies_p, different, smallest_seen(strategies, a.images, pairs))
        sides = [(variances[at], arms[at].seeds) for at in place]
        seed_error = sum(one.value / seeds for one, seeds in sides) ** 0.5
        if not different:
            needed = seeds_needed(networks.difference, of_images, a.images, sides, pairs)
    return Pair(
        *place,
        a.images,
        judged,
        wider,
        together(tests),
        float(np.mean(tests <= 0.05)),
        of_images**0.5,
        seed_error,
        needed,
        only_a,
        only_b,
    )
