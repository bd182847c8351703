"""Power of a comparison: differences that would have shown, and seeds or images to show more."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from finetune_core.evaluation.comparison.measures import ACCURACY, Measure
from finetune_core.evaluation.comparison.paired import LEVEL, Claim
from finetune_core.evaluation.comparison.strategies import SeedVariance, t_quantile, total_variance

POWER = 0.80  # probability that the smallest difference shows
_MOST_SEEDS = 10  # nobody is asked for more
_MOST_IMAGES = 100  # as a multiple of the current number


def smallest_detectable(
    claim: Claim,
    images: int,
    pairs: int = 1,
    discordance: float | None = None,
    measure: Measure = ACCURACY,
) -> float:
    """Return the smallest true difference that would have shown four times out of five.

    It is taken at the strictest step of Holm's correction for ``pairs`` pairs, with the errors that
    were found. Few seeds estimate these errors only roughly: noncentral t. For two single networks:
    exact power of McNemar's test.

    Args:
        claim: the claim.
        images: number of images.
        pairs: number of pairs that are corrected for.
        discordance: for two single networks, the share of images that they classify differently.
        measure: the metric.
    """
    if discordance is not None:
        return _smallest_mcnemar(images, discordance, LEVEL / pairs)
    least = 1 / images if measure is ACCURACY else 0.0
    return min(
        measure.max_difference,
        max(_noncentrality(claim.freedom, LEVEL / pairs) * claim.error, least),
    )


def seeds_needed(
    difference: float,
    of_images: float,
    images: int,
    sides: Sequence[tuple[SeedVariance, int]],
    pairs: int = 1,
) -> int | None:
    """Return how many seeds per arm would show ``difference`` four times out of five.

    The difference is assumed to be the true one. None if more than ten would be needed.

    Args:
        difference: the difference.
        of_images: current ``image_variance``.
        images: number of images.
        sides: (variance, current number of seeds) of each arm.
        pairs: number of pairs that are corrected for.
    """
    from scipy.stats import nct

    pure = max(0.0, of_images - sum(variance.chance / seeds for variance, seeds in sides))
    begin = min(seeds for _, seeds in sides) + 1
    for count in range(begin, _MOST_SEEDS + 1):
        then = _add_seeds(sides, count)
        expected = pure + sum(variance.chance / seeds for variance, seeds in then)
        variance, freedom = total_variance(expected, images, then)
        if variance == 0:
            return None
        critical = t_quantile(1 - LEVEL / (2 * pairs), freedom)
        if nct.sf(critical, freedom, abs(difference) / variance**0.5) >= POWER:
            return count
    return None


def images_needed(
    difference: float,
    of_images: float,
    images: int,
    sides: Sequence[tuple[SeedVariance, int]],
    pairs: int = 1,
) -> int | None:
    """Return how many images would show ``difference`` four times out of five.

    The variance due to images and chance shrinks with their number, the variance due to seeds does
    not.

    Args:
        difference: the difference, assumed to be the true one.
        of_images: current ``image_variance``.
        images: current number of images.
        sides: (variance, seeds) of each arm.
        pairs: number of pairs that are corrected for.

    Returns:
        At least as many as needed, to two digits. None if a hundred times as many as now would not
        do, or if as many as now do.
    """

    def is_enough(count: int) -> bool:
        share = images / count
        then = [
            (replace(variance, chance=variance.chance * share), seeds) for variance, seeds in sides
        ]
        variance, freedom = total_variance(of_images * share, count, then)
        return bool(_noncentrality(freedom, LEVEL / pairs) * variance**0.5 <= difference)

    low, high = images, _MOST_IMAGES * images
    if is_enough(low) or not is_enough(high):
        return None
    while high > 1.02 * low + 1:
        middle = round((low * high) ** 0.5)
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    digit: int = 10 ** max(0, len(str(high)) - 2)
    return -(-high // digit) * digit


def _add_seeds(
    sides: Sequence[tuple[SeedVariance, int]], count: int
) -> list[tuple[SeedVariance, int]]:
    """Return both sides with at least ``count`` seeds.

    Further arms that may add to the pooled variance are not counted on.
    """
    more = [max(0, count - seeds) for _, seeds in sides]
    shared = sum(new for new, (variance, _) in zip(more, sides, strict=True) if variance.pooled)
    return [
        (
            replace(variance, freedom=variance.freedom + (shared if variance.pooled else new)),
            seeds + new,
        )
        for new, (variance, seeds) in zip(more, sides, strict=True)
    ]


@lru_cache(maxsize=512)
def _noncentrality(freedom: float, level: float) -> float:
    """Return how many standard errors a difference must measure to be found with ``POWER``.

    The test is a two-sided t test.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct

    critical = t_quantile(1 - level / 2, freedom)
    normal = critical + t_quantile(POWER, np.inf)
    if np.isinf(freedom):
        return normal
    return float(
        brentq(lambda size: nct.sf(critical, freedom, size) - POWER, critical / 2, 3 * normal)
    )


@lru_cache(maxsize=512)
def _smallest_mcnemar(images: int, discordance: float, level: float) -> float:
    """Return the difference at which the exact power reaches ``POWER``, by bisection.

    1 if so few images can show no difference at all.
    """
    low, high = 0.0, 1.0
    if _mcnemar_power(images, 1.0, 1.0, level) < POWER:
        return 1.0
    for _ in range(20):
        middle = (low + high) / 2
        reached = _mcnemar_power(images, max(discordance, middle), middle, level) >= POWER
        low, high = (low, middle) if reached else (middle, high)
    return high


def _mcnemar_power(images: int, discordance: float, difference: float, level: float) -> float:
    """Return the power of the exact test.

    Args:
        images: number of images.
        discordance: share of images that the two networks classify differently.
        difference: share by which A is favoured more often.
        level: level of the test.
    """
    from scipy.stats import binom

    counts = np.arange(images + 1)
    weights = binom.pmf(counts, images, discordance)
    counts, weights = counts[weights > 1e-9], weights[weights > 1e-9]
    # The test says "different" if at most this many discordant images contradict the majority.
    against = binom.ppf(level / 2, counts, 0.5)
    against -= binom.cdf(against, counts, 0.5) > level / 2
    ahead = (discordance + difference) / (2 * discordance)
    return float(weights @ binom.cdf(against, counts, 1 - ahead))
