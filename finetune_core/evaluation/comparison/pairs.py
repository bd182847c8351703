"""Both claims about each pair of arms, corrected over all pairs, with their power."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from finetune_core.evaluation.comparison.measures import ACCURACY, Measure
from finetune_core.evaluation.comparison.paired import (
    LEVEL,
    ArmPredictions,
    Claim,
    combine_p_values,
    compare_networks,
    count_only_one_right,
    holm,
    image_variance,
    is_different,
    mcnemar_p,
)
from finetune_core.evaluation.comparison.power import (
    images_needed,
    seeds_needed,
    smallest_detectable,
)
from finetune_core.evaluation.comparison.strategies import (
    SeedVariance,
    compare_strategies,
    estimate_seed_variances,
)


@dataclass(frozen=True)
class PairVerdict:
    """A claim with its verdict.

    Attributes:
        claim: the claim.
        holm_p: its p-value, corrected over all pairs of the comparison.
        different: True if ``holm_p`` is at most 5 % and the interval excludes 0; for strategies,
            only if their networks are different, too.
        smallest: the smallest true difference that would have shown four times out of five, at the
            strictest step of Holm's correction.
        family: number of pairs that it is corrected for.
    """

    claim: Claim
    holm_p: float
    different: bool
    smallest: float
    family: int


@dataclass(frozen=True)
class Pair:
    """Two arms; every difference is the first minus the second.

    Attributes:
        a: index of the first arm.
        b: index of the second arm.
        measure: the metric of the comparison.
        images: number of images.
        networks: verdict on the networks that were trained.
        strategies: verdict on the strategies; None if one arm does not support claims about its
            strategy, see ``compare_pairs``.
        mcnemar_p: exact McNemar tests of each network of the first with each of the second,
            combined by Rüger's rule, which holds under any dependence. It says nothing about other
            seeds, and is about accuracy whatever the metric.
        mcnemar_share: the share of these tests with a p of at most 5 %.
        image_error: standard error due to the sample of images.
        seed_error: standard error due to the seeds, beyond what images explain; None if
            ``strategies`` is None.
        seeds_needed: number of seeds per arm that would most likely show a difference as large as
            this one. None if it has shown, if the number cannot be known, and if seeds alone would
            not do.
        only_a: number of images that only a network of the first arm classifies correctly, mean
            over all pairs of networks.
        only_b: the same number for the second arm.
        sides: (variance, seeds) of each arm; empty if ``strategies`` is None.
    """

    a: int
    b: int
    measure: Measure
    images: int
    networks: PairVerdict
    strategies: PairVerdict | None
    mcnemar_p: float
    mcnemar_share: float
    image_error: float
    seed_error: float | None
    seeds_needed: int | None
    only_a: float
    only_b: float
    sides: tuple[tuple[SeedVariance, int], ...] = ()

    @property
    def difference(self) -> float:
        """Mean score of the first arm minus that of the second.

        For log loss it is negative if the first is better.
        """
        return self.measure.to_difference(self.networks.claim.gain, 0, 0)[0]

    @property
    def widest(self) -> PairVerdict:
        """The verdict on the strategies if they can be compared, else on the networks."""
        return self.strategies or self.networks

    def images_needed(self, difference: float) -> int | None:
        """Return how many images would most likely show ``difference`` between the strategies.

        None if the number is not known, if these many images nearly do, or if no number would.
        """
        if self.strategies is None:
            return None
        family = self.strategies.family
        return images_needed(difference, self.image_error**2, self.images, self.sides, family)


def pool_seed_variances(
    arms: Sequence[ArmPredictions], alike: Sequence[bool]
) -> list[SeedVariance | None]:
    """Return the seed variance of each arm.

    It is pooled over the arms that ``alike`` marks; every other arm has its own.

    Args:
        arms: the arms.
        alike: for each arm, whether it trained in epochs, to the end. Where a head is fitted in
            closed form, a seed adds next to nothing, and would make the seeds of other arms look as
            if they added less.
    """
    pooled = iter(
        estimate_seed_variances(
            [arm for arm, is_alike in zip(arms, alike, strict=True) if is_alike]
        )
    )
    return [
        next(pooled) if is_alike else _own_variance(arm)
        for arm, is_alike in zip(arms, alike, strict=True)
    ]


def _own_variance(arm: ArmPredictions) -> SeedVariance | None:
    variance = estimate_seed_variances([arm])[0]
    return variance and replace(variance, pooled=False)


def compare_pairs(
    arms: Sequence[ArmPredictions],
    finished: Sequence[bool],
    variances: Sequence[SeedVariance | None],
) -> tuple[Pair, ...]:
    """Test every pair of arms.

    Args:
        arms: the arms.
        finished: for each arm, whether its runs trained to the end, so that they support claims
            about their strategy, given several seeds.
        variances: seed variance of each arm, from ``pool_seed_variances``; ``NO_SEED_VARIANCE``
            if no seed matters.
    """
    places = list(combinations(range(len(arms)), 2))
    variances = [
        variance if ended else None for variance, ended in zip(variances, finished, strict=True)
    ]
    networks = [compare_networks(arms[a], arms[b]) for a, b in places]
    strategies = [
        compare_strategies(arms[a], arms[b], (variances[a], variances[b])) for a, b in places
    ]
    # A claim about strategies includes the one about networks, so its p-value is never lower. This
    # matters if few images distinguish the sides.
    strategies = [
        claim and replace(claim, p=max(claim.p, other.p))
        for claim, other in zip(strategies, networks, strict=True)
    ]
    corrected = holm([claim.p for claim in networks])
    # Pairs with a single seed count in the family: another seed must not revoke other verdicts.
    family = [index for index, (a, b) in enumerate(places) if finished[a] and finished[b]]
    wider = dict(
        zip(
            family,
            holm([claim.p if (claim := strategies[index]) else 1.0 for index in family]),
            strict=True,
        )
    )
    return tuple(
        _make_pair(
            place,
            arms,
            _TestedClaim(networks[index], corrected[index], len(places)),
            _TestedClaim(claim, wider.get(index, 1.0), len(family))
            if (claim := strategies[index])
            else None,
            variances,
        )
        for index, place in enumerate(places)
    )


@dataclass(frozen=True)
class _TestedClaim:
    """A claim with its corrected p-value and the size of its family."""

    claim: Claim
    holm_p: float
    family: int


def _make_pair(
    place: tuple[int, int],
    arms: Sequence[ArmPredictions],
    networks: _TestedClaim,
    strategies: _TestedClaim | None,
    variances: Sequence[SeedVariance | None],
) -> Pair:
    a, b = (arms[index] for index in place)
    only_a, only_b = count_only_one_right(a, b)
    tests = mcnemar_p(a.correct, b.correct)
    of_images = image_variance(a.by_image - b.by_image)
    discordance = (
        (only_a + only_b) / a.images if a.measure is ACCURACY and a.seeds == b.seeds == 1 else None
    )
    narrow = _make_verdict(networks, a, discordance)
    wide, seed_error, needed = None, None, None
    sides: list[tuple[SeedVariance, int]] = []
    if strategies:
        wide = _make_verdict(strategies, a)
        wide = replace(wide, different=wide.different and narrow.different)
        sides = [(variance, arms[index].seeds) for index in place if (variance := variances[index])]
        seed_error = sum(variance.value / seeds for variance, seeds in sides) ** 0.5
        if not wide.different:
            needed = seeds_needed(
                strategies.claim.gain, of_images, a.images, sides, strategies.family
            )
    share = float(np.mean(tests <= LEVEL))
    return Pair(
        *place,
        a.measure,
        a.images,
        narrow,
        wide,
        combine_p_values(tests),
        share,
        of_images**0.5,
        seed_error,
        needed,
        only_a,
        only_b,
        tuple(sides),
    )


def _make_verdict(
    tested: _TestedClaim, arm: ArmPredictions, discordance: float | None = None
) -> PairVerdict:
    claim = tested.claim
    smallest = smallest_detectable(claim, arm.images, tested.family, discordance, arm.measure)
    return PairVerdict(
        claim, tested.holm_p, is_different(claim, tested.holm_p), smallest, tested.family
    )
