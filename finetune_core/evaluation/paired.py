"""Pure statistics of who is right on the same images: is the difference more than luck?

Two things are luck: which images the split happens to hold, and which seed a run happened to have. With several seeds on both
sides the claim is about the *strategies*, and both count. With one seed on a side the claim is about the *networks* that were
trained, and only the images count: what another seed would do, nobody has seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

LEVEL = 0.05  # the share of "different" verdicts between what does not differ
POWER = 0.80  # with which the smallest difference that could have shown would have shown
_DRAWS = 10_000

About = Literal["networks", "strategies"]


@dataclass(frozen=True)
class Interval:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Accuracy of A less that of B, on the same images.

    Attributes:
        difference, low, high: with its 95 % interval. Networks: percentile bootstrap over images. Strategies: Student's t with
            the images' and the seeds' variance (a bootstrap of two or three seeds is far too narrow).
        p: of the hypothesis that there is no difference; what Holm's correction and the verdict use. Networks: ``sign_flip_p``,
            which with one seed a side is McNemar's. Strategies: of Student's t, but never less than ``sign_flip_p``.
        mcnemar_p: exact, between networks. With several seeds: of each seed's pair of networks, put together by Rüger's rule
            (1978), which holds whatever their dependence; it says nothing of other seeds.
        image_error: standard error from the choice of images.
        seed_error: standard error from the choice of seeds, what images contribute taken out; None where a side has one seed.
        freedom: degrees of freedom of ``p`` and the interval; infinite for networks.
        only_a, only_b: images that A alone, or B alone, gets right; means over the seeds.
    """

    about: About
    images: int
    difference: float
    low: float
    high: float
    p: float
    mcnemar_p: float
    image_error: float
    seed_error: float | None
    freedom: float
    only_a: float
    only_b: float


def paired_test(a: np.ndarray, b: np.ndarray) -> PairedTest:
    """Compare two sides, bool ``[seeds, images]`` each: who was right on which image. The numbers of seeds may differ.

    Images and seeds are both random effects, with seeds nested in their side, as cases and readers are in studies of
    diagnostic accuracy (Obuchowski & Rockette 1995; degrees of freedom as in Satterthwaite 1946). Where equal seeds make both
    sides alike, taking them for independent errs towards "not distinguishable".
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    gained = a.mean(0) - b.mean(0)
    images = len(gained)
    difference = float(gained.mean())
    units = np.rint(gained * len(a) * len(b)).astype(np.int64)
    image_variance = float(gained.var(ddof=1)) / images if images > 1 else 0.0
    mcnemar = _together([mcnemar_p(one, other) for one, other in zip(a, b, strict=False)])
    only_a, only_b = (float((one.mean(0) * (1 - other.mean(0))).sum()) for one, other in ((a, b), (b, a)))
    seed_error, freedom, p = None, np.inf, sign_flip_p(units)
    if min(len(a), len(b)) == 1:
        low, high = bootstrap(gained)
    else:
        by_seed, spread = zip(*(_seed_variances(side) for side in (a, b)), strict=True)
        seed_variance = max(0.0, sum(by_seed) - sum(spread))
        seed_error, error = seed_variance**0.5, (image_variance + seed_variance) ** 0.5
        freedom = _satterthwaite(error**2, [(image_variance, images - 1), (by_seed[0], len(a) - 1), (by_seed[1], len(b) - 1)])
        # Where few images tell the sides apart, t finds too much in them.
        p = max(p, _p_of_t(difference, error, freedom))
        reach = _t_quantile(1 - LEVEL / 2, freedom) * error
        low, high = max(-1.0, difference - reach), min(1.0, difference + reach)
    about: About = "networks" if seed_error is None else "strategies"
    return PairedTest(
        about, images, difference, low, high, p, mcnemar, image_variance**0.5, seed_error, float(freedom), only_a, only_b
    )


def is_different(test: PairedTest, corrected_p: float) -> bool:
    """The verdict: the corrected p is at most 5 %, and the interval leaves 0 out."""
    return corrected_p <= LEVEL and not test.low <= 0 <= test.high


def mcnemar_p(a: np.ndarray, b: np.ndarray) -> float:
    """Exact two-sided McNemar test (1947) of two networks, ``[images]`` each, right or wrong."""
    from scipy.stats import binomtest

    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def sign_flip_p(units: np.ndarray) -> float:
    """Exact two-sided p of a sum at least as far from 0 when each of ``units`` (whole numbers, ``[images]``) could as well have
    had the other sign. For -1, 0 and 1 this is McNemar's test."""
    from scipy.signal import fftconvolve
    from scipy.stats import binom

    sizes, counts = np.unique(np.abs(units[units != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    sizes = sizes // (unit := np.gcd.reduce(sizes))
    chances = np.ones(1)  # of each sum from -reach to reach, in steps of 2
    for size, count in zip(sizes, counts, strict=True):
        steps = np.zeros(size * count + 1)
        steps[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = fftconvolve(chances, steps)
    sums = 2 * np.arange(len(chances)) - (len(chances) - 1)
    return float(np.clip(chances[np.abs(sums) >= abs(units.sum()) // unit].sum(), 0.0, 1.0))


def bootstrap(gained: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Percentile 95 % interval of the mean of ``gained`` ``[images]`` when images are drawn anew.

    Images with equal values are alike, so that how many of each value are drawn is one multinomial: exact, and quick.
    """
    values, counts = np.unique(gained, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(gained), counts / len(gained), size=_DRAWS) @ values / len(gained)
    low, high = np.quantile(drawn, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979) of a family of p-values, in their order."""
    order, corrected, least = np.argsort(p_values, kind="stable"), [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = float(least)
    return corrected


@lru_cache(maxsize=256)
def smallest_seen(test: PairedTest, pairs: int = 1) -> float:
    """The smallest true difference that this comparison would have shown four times out of five.

    Taken at the strictest step of Holm's correction, for ``pairs`` pairs. Networks: exact power of McNemar's test for as many
    images that the two see differently as there were. Strategies: noncentral t with the errors that were found, which two or
    three seeds tell only roughly.
    """
    level = LEVEL / pairs
    if test.about == "networks":
        return _smallest_mcnemar(test.images, (test.only_a + test.only_b) / test.images, level)
    error = (test.image_error**2 + (test.seed_error or 0.0) ** 2) ** 0.5
    return min(1.0, max(_noncentrality(test.freedom, level) * error, 1 / test.images))


def accuracy_interval(correct: np.ndarray) -> Interval:
    """Accuracy over bool ``[seeds, images]`` with an interval for other images, and, given several seeds, other seeds.

    Wilson's interval (1927); with several seeds for as many images as would be equally uncertain, with Student's t.
    """
    seeds, images = correct.shape
    correct = correct.astype(np.float64)
    share, worth, freedom = float(correct.mean()), float(images), np.inf
    if seeds > 1 and images > 1:
        per_image = float(correct.mean(0).var(ddof=1)) / images
        by_seed, spread = _seed_variances(correct)
        variance = per_image + max(0.0, by_seed - spread)
        if variance > 0:
            worth = share * (1 - share) / variance
            freedom = _satterthwaite(variance, [(per_image, images - 1), (by_seed, seeds - 1)])
    quantile = _t_quantile(1 - LEVEL / 2, freedom)
    centre = (share + quantile**2 / (2 * worth)) / (1 + quantile**2 / worth)
    reach = quantile / (1 + quantile**2 / worth) * (share * (1 - share) / worth + quantile**2 / (4 * worth**2)) ** 0.5
    return Interval(share, max(0.0, centre - reach), min(1.0, centre + reach))


def _seed_variances(correct: np.ndarray) -> tuple[float, float]:
    """(variance of the mean over seeds as the seeds' accuracies show it, the part of it that chance on these images explains)."""
    seeds, images = correct.shape
    by_seed = correct.mean(1)
    rest = correct - by_seed[:, None] - correct.mean(0) + correct.mean()
    residual = float((rest**2).sum()) / max(1, (seeds - 1) * (images - 1))
    return float(by_seed.var(ddof=1)) / seeds, residual / (images * seeds)


def _satterthwaite(variance: float, parts: Sequence[tuple[float, int]]) -> float:
    """Degrees of freedom of a variance that is made of (variance, degrees of freedom)."""
    spread = sum(part**2 / freedom for part, freedom in parts if freedom > 0)
    return max(1.0, variance**2 / spread) if spread > 0 else np.inf


def _p_of_t(difference: float, error: float, freedom: float) -> float:
    from scipy.stats import t

    if error == 0:  # all images agree: how many there are is for the other test to judge
        return 0.0
    return float(2 * t.sf(abs(difference) / error, freedom))


def _t_quantile(share: float, freedom: float) -> float:
    from scipy.stats import norm, t

    return float(norm.ppf(share) if np.isinf(freedom) else t.ppf(share, freedom))


def _noncentrality(freedom: float, level: float) -> float:
    """How many standard errors a difference must measure for a two-sided t test to find it with ``POWER``."""
    from scipy.optimize import brentq
    from scipy.stats import nct

    critical = _t_quantile(1 - level / 2, freedom)
    normal = critical + _t_quantile(POWER, np.inf)
    if np.isinf(freedom):
        return normal
    return float(brentq(lambda size: nct.sf(critical, freedom, size) - POWER, critical / 2, 3 * normal))


def _together(p_values: Sequence[float]) -> float:
    """Rüger's rule: the k-th smallest of K p-values, times K / k, is one; here the median."""
    middle = -(-len(p_values) // 2)
    return float(min(1.0, sorted(p_values)[middle - 1] * len(p_values) / middle))


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
    # The test says "different" where at most this many of the discordant images go against the majority.
    against = binom.ppf(level / 2, counts, 0.5)
    against -= binom.cdf(against, counts, 0.5) > level / 2
    ahead = (discordance + difference) / (2 * discordance)
    return float(weights @ binom.cdf(against, counts, 1 - ahead))
