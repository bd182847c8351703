"""Statistics of strategies: the variation due to other images *and* other seeds.

The model. A network of arm ``a`` with seed ``s`` is right on image ``i`` with

    y[a, s, i] = m[a] + seed[a, s] + image[a, i] + rest

Images and seeds are both samples, and seeds are nested in their arm, as cases and readers are in
studies of diagnostic accuracy (Obuchowski & Rockette 1995; Hillis 2007). Over ``N`` images, the
difference ``d`` of two arms' mean accuracies has the variance

    V = image_variance + seed[a] / K[a] + seed[b] / K[b]

``image_variance`` is the variance of the images' mean gains over N. It contains the images' part
and that of ``rest``, which is averaged over seeds. ``seed[a]`` is what a seed adds to a network's
accuracy beyond chance on these images. Its estimate is the variance of the seeds' accuracies minus
``ArmPredictions.chance``. No part can be negative, so V is neither less than the images' part nor
less than the seeds'.

Pooling. Two or three seeds estimate their variance badly: Student's t with 2 degrees of freedom
needs 4.3 standard errors, and 27 under Holm's correction over 36 pairs. So ``seed`` is estimated
over all arms with several seeds, like the residual mean square of an analysis of variance. An arm
whose seeds spread more than those of the other arms (F test, one-sided, at ``OWN``) keeps its own
estimate, and its pairs are tested as Welch's (1947). It still counts in the pool of the other arms,
because leaving out what happens to be large would make the pool too small. An arm that spreads so
much more (at ``LEFT_OUT``) that it alone would determine the pool is left out. An arm that spreads
less is given the pooled estimate, which only makes its verdicts more careful. Degrees of freedom
follow Satterthwaite (1946) over the images' part, the pooled one, and each of those that stand
alone.

Both levels are compromises, found by simulation (``benchmarks/verdicts.py``). With a lower ``OWN``,
arms that do spread more are seldom noticed; with two seeds nothing notices them reliably. With a
higher ``OWN``, most of what pooling gains is lost to arms that look odd by chance.

Other metrics. ``y`` may be the value that another metric gives to a prediction (``measures.py``):
the log loss of an image, or its pseudo-value of macro F1. Nothing above needs ``y`` to be right or
wrong.

Equal seeds. Runs of equal seeds share the initial head and the order of the images, so their
accuracies may rise and fall together. That would make ``d`` more certain than V says. Differences
by seed would use it, at the price of more than half of the degrees of freedom. Here seeds count as
independent, which errs towards "not distinguishable".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune_core.evaluation.comparison.measures import ACCURACY
from finetune_core.evaluation.comparison.paired import (
    LEVEL,
    ArmPredictions,
    Claim,
    image_variance,
    percentile_interval,
)

OWN = 0.15  # level of the test at which an arm keeps its own variance
LEFT_OUT = 0.01  # level of the test at which an arm is left out of the pool, too


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SeedVariance:
    """Variance that the seed adds to the accuracy of a network of one arm.

    Attributes:
        value: the variance beyond chance on these images.
        chance: chance of the arm, as in ``ArmPredictions``.
        freedom: degrees of freedom of ``value + chance``.
        pooled: True if it is estimated from all arms.
        spreads_more: True if it is the arm's own because its seeds spread more than those of other
            arms.
    """

    value: float
    chance: float
    freedom: int
    pooled: bool
    spreads_more: bool = False


# For one run whose head is fitted without epochs: another seed would give an equal run.
NO_SEED_VARIANCE = SeedVariance(0.0, 0.0, freedom=1, pooled=False)


def estimate_seed_variances(arms: Sequence[ArmPredictions]) -> list[SeedVariance | None]:
    """Return the seed variance of each arm; None for an arm with one seed."""
    several = [arm for arm in arms if arm.seed_variance is not None]
    if not several:
        return [None] * len(arms)
    variances = np.array([arm.seed_variance for arm in several])
    chance = np.array([arm.chance for arm in several])
    freedom = np.array([arm.seeds - 1 for arm in several])
    odd = _test_spread(
        variances, max(0.0, _weighted_mean(variances - chance, freedom)) + chance, freedom
    )
    in_pool = odd >= LEFT_OUT
    pooled, shared = (
        max(0.0, _weighted_mean((variances - chance)[in_pool], freedom[in_pool])),
        int(freedom[in_pool].sum()),
    )
    alone = {id(arm) for arm, p in zip(several, odd, strict=True) if p < OWN}
    return [
        None if arm.seed_variance is None else _arm_variance(arm, pooled, shared, id(arm) in alone)
        for arm in arms
    ]


def _arm_variance(arm: ArmPredictions, pooled: float, freedom: int, has_own: bool) -> SeedVariance:
    if has_own:
        return SeedVariance(
            max(0.0, (arm.seed_variance or 0.0) - arm.chance),
            arm.chance,
            arm.seeds - 1,
            pooled=False,
            spreads_more=True,
        )
    return SeedVariance(pooled, arm.chance, freedom, pooled=True)


def _test_spread(variances: np.ndarray, expected: np.ndarray, freedom: np.ndarray) -> np.ndarray:
    """Test whether the seeds of each arm spread more than those of all other arms.

    Args:
        variances: variance of the seeds of each arm.
        expected: variance that is expected of each arm.
        freedom: degrees of freedom of each arm.

    Returns:
        P-values ``[arms]`` of the hypothesis that an arm spreads no more, relative to what is
        expected.
    """
    from scipy.special import fdtrc

    if len(variances) < 2 or not (expected > 0).all():
        return np.ones(len(variances))
    relative = variances / expected * freedom
    others, rest = relative.sum() - relative, freedom.sum() - freedom
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (relative / freedom) / (others / rest)
    p: np.ndarray = fdtrc(freedom, rest, np.nan_to_num(ratio))
    return p


def _weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    return float((values * weights).sum() / weights.sum())


def compare_strategies(
    a: ArmPredictions, b: ArmPredictions, variances: tuple[SeedVariance | None, SeedVariance | None]
) -> Claim | None:
    """Compare two strategies on new images and with new seeds, by Student's t.

    None if one side has one seed.
    """
    if variances[0] is None or variances[1] is None:
        return None
    gained = a.by_image - b.by_image
    difference = float(gained.mean())
    sides = ((variances[0], a.seeds), (variances[1], b.seeds))
    variance, freedom = total_variance(image_variance(gained), a.images, sides)
    error = variance**0.5
    reach = t_quantile(1 - LEVEL / 2, freedom) * error
    most = a.measure.max_difference
    low, high = max(-most, difference - reach), min(most, difference + reach)
    return Claim(
        "strategies",
        difference,
        low,
        high,
        error,
        freedom,
        t_test_p_value(difference, error, freedom),
    )


def total_variance(
    of_images: float, images: int, sides: Sequence[tuple[SeedVariance, int]]
) -> tuple[float, float]:
    """Return V and its degrees of freedom for a mean or a difference of means.

    Args:
        of_images: the ``image_variance``.
        images: number of images.
        sides: (variance, number of seeds) of each arm.
    """
    from_seeds = sum(side.value / seeds for side, seeds in sides)
    variance = max(
        of_images + from_seeds, from_seeds + sum(side.chance / seeds for side, seeds in sides)
    )
    pooled = [side for side, _ in sides if side.pooled]
    parts = [(of_images, images - 1)]
    parts += [
        (
            sum((side.value + side.chance) / seeds for side, seeds in sides if side.pooled),
            first.freedom,
        )
        for first in pooled[:1]
    ]
    parts += [
        ((side.value + side.chance) / seeds, side.freedom)
        for side, seeds in sides
        if not side.pooled
    ]
    uncertain = sum(part**2 / freedom for part, freedom in parts if freedom > 0)
    return variance, max(1.0, variance**2 / uncertain) if uncertain > 0 else np.inf


def accuracy_interval(arm: ArmPredictions, variance: SeedVariance | None) -> Interval:
    """Return the accuracy of an arm with an interval for other images and other seeds.

    Seeds count if there are several. The interval is Wilson's (1927). With several seeds it is
    Wilson's for as many images as would be equally uncertain, with Student's t. If an arm is right
    on all images, or on none, no number of images would be: then it is Wilson's, widened by the
    differences between other arms' seeds.
    """
    share, worth, freedom, beyond = arm.mean, float(arm.images), np.inf, 0.0
    if variance is not None and arm.images > 1:
        total, total_freedom = total_variance(
            image_variance(arm.by_image), arm.images, [(variance, arm.seeds)]
        )
        if total > 0 and 0 < share < 1:
            worth, freedom = share * (1 - share) / total, total_freedom
        elif total > 0:
            beyond = t_quantile(1 - LEVEL / 2, total_freedom) * total**0.5
    quantile = t_quantile(1 - LEVEL / 2, freedom)
    centre = (share + quantile**2 / (2 * worth)) / (1 + quantile**2 / worth)
    reach = (
        quantile
        / (1 + quantile**2 / worth)
        * (share * (1 - share) / worth + quantile**2 / (4 * worth**2)) ** 0.5
        + beyond
    )
    # At the ends the share itself might lie outside because of rounding.
    low, high = min(share, centre - reach), max(share, centre + reach)
    return Interval(share, max(0.0, low), min(1.0, high))


def measure_interval(arm: ArmPredictions, variance: SeedVariance | None) -> Interval:
    """Return the score of an arm, in the metric's own sign, with its 95 % interval.

    The interval is for other images and, given several seeds, other seeds. For accuracy it is
    Wilson's. For another metric it is that of ``scores.score`` for one network (bootstrap), and
    Student's t for the mean of several.
    """
    if arm.measure is ACCURACY:
        return accuracy_interval(arm, variance)
    if arm.seeds == 1 and arm.drawn is not None:
        return Interval(*arm.measure.to_difference(arm.mean, *percentile_interval(arm.drawn[0])))
    total, freedom = image_variance(arm.by_image), np.inf
    if variance is not None and arm.images > 1:
        total, freedom = total_variance(total, arm.images, [(variance, arm.seeds)])
    reach = t_quantile(1 - LEVEL / 2, freedom) * total**0.5
    value, low, high = arm.measure.to_difference(arm.mean, arm.mean - reach, arm.mean + reach)
    return Interval(value, max(0.0, low), min(arm.measure.max_difference, high))


def t_test_p_value(difference: float, error: float, freedom: float) -> float:
    """Return the two-sided p-value of Student's t test."""
    from scipy.special import ndtr, stdtr

    if error == 0:  # all images agree; the test of networks accounts for their number
        return 0.0
    size = -abs(difference) / error
    return float(2 * (ndtr(size) if np.isinf(freedom) else stdtr(freedom, size)))


def t_quantile(share: float, freedom: float) -> float:
    """Return a quantile of Student's t; of the normal distribution if ``freedom`` is infinite."""
    from scipy.special import ndtri, stdtrit

    return float(ndtri(share) if np.isinf(freedom) else stdtrit(freedom, share))
