"""What a comparison could have shown, and how many seeds would show what it did not."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from finetune_core.evaluation.comparison.measures import ACCURACY, Measure
from finetune_core.evaluation.comparison.paired import LEVEL, Claim
from finetune_core.evaluation.comparison.strategies import SeedVariance, t_quantile, total_variance

POWER = 0.80  # with which the smallest difference that could have shown would have shown
_MOST_SEEDS = 10  # that anybody is asked for
_MOST_IMAGES = 100  # times as many as there are


def smallest_seen(
    claim: Claim,
    images: int,
    pairs: int = 1,
    discordance: float | None = None,
    measure: Measure = ACCURACY,
) -> float:
    """The smallest true difference that this comparison would have shown four times out of five.

    Taken at the strictest step of Holm's correction, for ``pairs`` pairs, with the errors that were found, which few seeds tell only
    roughly: noncentral t. Of two single networks: exact power of McNemar's test.

    Args:
        discordance: of two single networks, the share of images that they see differently.
    """
    if discordance is not None:
        return _smallest_mcnemar(images, discordance, LEVEL / pairs)
    least = 1 / images if measure is ACCURACY else 0.0
    return min(measure.most, max(_noncentrality(claim.freedom, LEVEL / pairs) * claim.error, least))


def seeds_needed(
    difference: float,
    of_images: float,
    images: int,
    sides: Sequence[tuple[SeedVariance, int]],
    pairs: int = 1,
) -> int | None:
    """How many seeds per arm would show ``difference`` four times out of five, were it the true one; None where over ten would not.

    Args:
        of_images: image_variance now. sides: (variance, seeds now) of each arm.
    """
    from scipy.stats import nct

    pure = max(0.0, of_images - sum(one.chance / seeds for one, seeds in sides))
    begin = min(seeds for _, seeds in sides) + 1
    for count in range(begin, _MOST_SEEDS + 1):
        then = _with_seeds(sides, count)
        expected = pure + sum(one.chance / seeds for one, seeds in then)
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

    What images and chance add shrinks with their number, what seeds add stays.

    Args:
        of_images: image_variance now.
        sides: (variance, seeds) of each arm.

    Returns:
        At least as many as needed, to two digits; None where a hundred times as many as now would
        not do, or as many as now do.
    """

    def shows(count: int) -> bool:
        share = images / count
        then = [(replace(one, chance=one.chance * share), seeds) for one, seeds in sides]
        variance, freedom = total_variance(of_images * share, count, then)
        return bool(_noncentrality(freedom, LEVEL / pairs) * variance**0.5 <= difference)

    low, high = images, _MOST_IMAGES * images
    if shows(low) or not shows(high):
        return None
    while high > 1.02 * low + 1:
        middle = round((low * high) ** 0.5)
        low, high = (low, middle) if shows(middle) else (middle, high)
    digit: int = 10 ** max(0, len(str(high)) - 2)
    return -(-high // digit) * digit


def _with_seeds(
    sides: Sequence[tuple[SeedVariance, int]], count: int
) -> list[tuple[SeedVariance, int]]:
    """Both sides with at least ``count`` seeds; that other arms may add to what is pooled is not counted on."""
    more = [max(0, count - seeds) for _, seeds in sides]
    shared = sum(new for new, (one, _) in zip(more, sides, strict=True) if one.pooled)
    return [
        (replace(one, freedom=one.freedom + (shared if one.pooled else new)), seeds + new)
        for new, (one, seeds) in zip(more, sides, strict=True)
    ]


@lru_cache(maxsize=512)
def _noncentrality(freedom: float, level: float) -> float:
    """How many standard errors a difference must measure for a two-sided t test to find it with ``POWER``."""
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
    """Where the exact power reaches ``POWER``, by bisection; 1 where so few images can show no difference at all."""
    low, high = 0.0, 1.0
    if _mcnemar_power(images, 1.0, 1.0, level) < POWER:
        return 1.0
    for _ in range(20):
        middle = (low + high) / 2
        reached = _mcnemar_power(images, max(discordance, middle), middle, level) >= POWER
        low, high = (low, middle) if reached else (middle, high)
    return high


def _mcnemar_power(images: int, discordance: float, difference: float, level: float) -> float:
    """Of the exact test, where a share ``discordance`` of images is seen differently, by ``difference`` more often in A's favour."""
    from scipy.stats import binom

    counts = np.arange(images + 1)
    weights = binom.pmf(counts, images, discordance)
    counts, weights = counts[weights > 1e-9], weights[weights > 1e-9]
    # The test says "different" where at most this many of the discordant images go against the
    # majority.
    against = binom.ppf(level / 2, counts, 0.5)
    against -= binom.cdf(against, counts, 0.5) > level / 2
    ahead = (discordance + difference) / (2 * discordance)
    return float(weights @ binom.cdf(against, counts, 1 - ahead))
