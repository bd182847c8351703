"""Paired statistics of predictions on the same images: the claim about networks, and shared parts.

Two different claims can be made about two arms:

- *networks*: these trained networks on new images. Only the images are a sample; the networks are
  given. Any number of seeds will do.
- *strategies*: other runs of the same two strategies on new images. Images and seeds are samples,
  so both sides need several seeds (``strategies.py``).

A claim about strategies is the wider one. It is only made if the claim about the networks holds,
too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.special import log_softmax

from finetune_core.evaluation.comparison.measures import (
    ACCURACY,
    Measure,
    f1_pseudo_values,
    resample_f1,
)
from finetune_core.evaluation.single_run.scores import count_resamples, draw_bootstrap_weights

LEVEL = 0.05  # share of "different" verdicts among pairs that do not differ
_DRAWS = 10_000
_FLIPS, _FLIPS_AT_ONCE = 9_999, 500

About = Literal["networks", "strategies"]


@dataclass(frozen=True, eq=False)
class ArmPredictions:
    """Correctness of the networks of one arm on the same images.

    Attributes:
        measure: the metric.
        correct: bool ``[seeds, images]``.
        values: float ``[seeds, images]``: value of the metric for each prediction, higher being
            better; their means are compared.
        drawn: float ``[seeds, resamples]``: for other metrics than accuracy, the value of each
            network in each resample. The resamples are the same for all arms.
        by_image: float ``[images]``, the mean of ``values`` over the networks; for accuracy, the
            share of the networks that is right.
        seed_variance: variance of the seeds' means (``ddof=1``); None with one seed.
        chance: the part of ``seed_variance`` that the sample of images explains: networks of equal
            accuracy differ by as much on so few images. It is the mean square of the interaction of
            seeds and images, divided by the number of images.
    """

    measure: Measure
    correct: np.ndarray
    values: np.ndarray
    drawn: np.ndarray | None
    by_image: np.ndarray
    seed_variance: float | None
    chance: float

    @property
    def seeds(self) -> int:
        """Number of networks."""
        return len(self.correct)

    @property
    def images(self) -> int:
        """Number of images."""
        return int(self.correct.shape[1])

    @property
    def mean(self) -> float:
        """Mean of ``values``."""
        return float(self.by_image.mean())

    def select_network(self, network: int) -> "ArmPredictions":
        """Return the predictions of one network, given its index."""
        rows = slice(network, network + 1)
        drawn = None if self.drawn is None else self.drawn[rows]
        return make_arm_predictions(self.measure, self.correct[rows], self.values[rows], drawn)


@dataclass(frozen=True)
class Claim:
    """Difference by which A is better than B; for log loss B minus A.

    Attributes:
        about: ``networks`` or ``strategies``.
        gain: the difference. ``Measure.to_difference`` converts it to the difference A minus B of
            the metric.
        low: lower end of its 95 % interval.
        high: upper end of its 95 % interval.
        error: its standard error.
        freedom: degrees of freedom of ``error``; infinite for networks.
        p: p-value of no difference.
    """

    about: About
    gain: float
    low: float
    high: float
    error: float
    freedom: float
    p: float


def summarize_accuracy(correct: np.ndarray) -> ArmPredictions:
    """Summarise bool ``[seeds, images]`` by accuracy."""
    return make_arm_predictions(ACCURACY, correct, correct.astype(np.float64), None)


def summarize_measure(
    measure: Measure,
    labels: np.ndarray,
    logits: Sequence[np.ndarray],
    resamples: int | None = None,
    seed: int = 0,
) -> list[ArmPredictions]:
    """Summarise several arms by a metric.

    Args:
        measure: the metric.
        labels: int ``[images]``.
        logits: float ``[seeds, images, classes]`` for each arm.
        resamples: number of resamples for the intervals of other metrics than accuracy; as many as
            ``scores.score`` draws if None. Images are drawn as there, the same for all arms.
        seed: seed of the resamples.
    """
    predicted = [arm_logits.argmax(2) for arm_logits in logits]
    correct = [arm_predicted == labels for arm_predicted in predicted]
    if measure is ACCURACY:
        return [summarize_accuracy(arm_correct) for arm_correct in correct]
    if measure.name == "log_loss":
        values = [
            np.take_along_axis(log_softmax(arm_logits, axis=2), labels[None, :, None], axis=2)[
                ..., 0
            ]
            for arm_logits in logits
        ]
    else:
        values = [f1_pseudo_values(labels, arm_predicted) for arm_predicted in predicted]
    drawn: list[list[np.ndarray]] = [[] for _ in logits]
    count = count_resamples(logits[0][0].size) if resamples is None else resamples
    for weights in draw_bootstrap_weights(labels, count, seed):
        for arm_drawn, arm_predicted, arm_values in zip(drawn, predicted, values, strict=True):
            if measure.name == "log_loss":
                arm_drawn.append(arm_values @ weights / len(labels))
            else:
                arm_drawn.append(
                    np.stack([resample_f1(labels, network, weights) for network in arm_predicted])
                )
    return [
        make_arm_predictions(measure, arm_correct, arm_values, np.concatenate(arm_drawn, axis=1))
        for arm_correct, arm_values, arm_drawn in zip(correct, values, drawn, strict=True)
    ]


def make_arm_predictions(
    measure: Measure, correct: np.ndarray, values: np.ndarray, drawn: np.ndarray | None
) -> ArmPredictions:
    """Return ``ArmPredictions`` with the fields that follow from the given ones."""
    seeds, images = correct.shape
    by_image, by_seed = values.mean(0), values.mean(1)
    if seeds == 1:
        return ArmPredictions(measure, correct, values, drawn, by_image, None, 0.0)
    rest = values - by_seed[:, None] - by_image + values.mean()
    residual = float((rest**2).sum()) / max(1, (seeds - 1) * (images - 1))
    return ArmPredictions(
        measure, correct, values, drawn, by_image, float(by_seed.var(ddof=1)), residual / images
    )


def compare_networks(a: ArmPredictions, b: ArmPredictions) -> Claim:
    """Compare the networks that were trained, each side by its mean, on new images.

    The p-value is that of ``sign_flip_p``, which is McNemar's test for one network per side. For
    other metrics, whose values differ from image to image, random flips are used. The interval is a
    percentile bootstrap over images of the metric itself.
    """
    gained = a.by_image - b.by_image
    if a.drawn is None or b.drawn is None:
        low, high = bootstrap(gained)
        p = sign_flip_p(np.rint(gained * a.seeds * b.seeds).astype(np.int64))
    else:
        low, high = percentile_interval(a.drawn.mean(0) - b.drawn.mean(0))
        p = random_flip_p(gained)
    return Claim(
        "networks", float(gained.mean()), low, high, image_variance(gained) ** 0.5, np.inf, p
    )


def percentile_interval(drawn: np.ndarray) -> tuple[float, float]:
    """Return the ends of the 95 % percentile interval of ``[resamples]``."""
    low, high = np.quantile(drawn, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def image_variance(gained: np.ndarray) -> float:
    """Return the variance of the mean of ``gained`` ``[images]`` due to the sample of images."""
    return float(gained.var(ddof=1)) / len(gained) if len(gained) > 1 else 0.0


def count_only_one_right(a: ArmPredictions, b: ArmPredictions) -> tuple[float, float]:
    """Count images that only A, and only B, classifies correctly: means over pairs of networks."""
    right_a, right_b = a.correct.mean(0), b.correct.mean(0)
    only_a, only_b = (
        float((one * (1 - other)).sum()) for one, other in ((right_a, right_b), (right_b, right_a))
    )
    return only_a, only_b


def mcnemar_p(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Test every network of A against every one of B by the exact two-sided McNemar test (1947).

    Args:
        a: bool ``[networks of A, images]``, correct or not.
        b: bool ``[networks of B, images]``, correct or not.

    Returns:
        P-values ``[networks of A, networks of B]``.
    """
    from scipy.stats import binom

    a, b = a.astype(np.int64), b.astype(np.int64)
    only_a, only_b = a @ (1 - b).T, (1 - a) @ b.T
    p: np.ndarray = np.minimum(1.0, 2 * binom.cdf(np.minimum(only_a, only_b), only_a + only_b, 0.5))
    return p


def combine_p_values(p_values: np.ndarray) -> float:
    """Combine p-values under any dependence (Rüger 1978).

    The combined p is the k-th smallest of K, times K / k; here the median.
    """
    ordered = np.sort(p_values, axis=None)
    middle = -(-len(ordered) // 2)
    return float(min(1.0, ordered[middle - 1] * len(ordered) / middle))


def sign_flip_p(units: np.ndarray) -> float:
    """Return the exact two-sided p-value of a sign-flip test of the sum of ``units``.

    Under the hypothesis each unit could equally well have the opposite sign. The p-value is the
    probability of a sum at least as far from 0. For -1, 0 and 1 this is McNemar's test.

    Args:
        units: int ``[images]``.
    """
    from scipy.signal import fftconvolve
    from scipy.stats import binom

    sizes, counts = np.unique(np.abs(units[units != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    sizes = sizes // (unit := np.gcd.reduce(sizes))
    chances = np.ones(1)  # probability of each sum from -reach to reach, in steps of 2
    for size, count in zip(sizes, counts, strict=True):
        steps = np.zeros(size * count + 1)
        steps[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = fftconvolve(chances, steps)
    sums = 2 * np.arange(len(chances)) - (len(chances) - 1)
    return float(np.clip(chances[np.abs(sums) >= abs(units.sum()) // unit].sum(), 0.0, 1.0))


def random_flip_p(gained: np.ndarray) -> float:
    """Return the p-value of a sign-flip test for any real values ``[images]``.

    It is the share of random flips whose sum is at least as far from 0. The observed one counts as
    a flip (Phipson & Smyth 2010).
    """
    return _random_flip_p(gained[gained != 0].astype(np.float32).tobytes())


@lru_cache(maxsize=256)  # a page asks again whenever it is redrawn
def _random_flip_p(gained: bytes) -> float:
    values, random = np.frombuffer(gained, np.float32), np.random.default_rng(0)
    if not len(values):
        return 1.0
    reached, least = 0, abs(float(values.sum(dtype=np.float64))) * (1 - 1e-5)
    for start in range(0, _FLIPS, _FLIPS_AT_ONCE):
        size = (min(_FLIPS_AT_ONCE, _FLIPS - start), -(-len(values) // 8))
        signs = np.unpackbits(random.integers(0, 256, size, np.uint8), axis=1, count=len(values))
        reached += int(
            (np.abs(2 * (signs.astype(np.float32) @ values) - values.sum()) >= least).sum()
        )
    return (reached + 1) / (_FLIPS + 1)


def bootstrap(gained: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Return the percentile 95 % bootstrap interval of the mean of ``gained`` ``[images]``.

    Images with equal values are exchangeable, so the number drawn of each value is a multinomial:
    exact, and quick.
    """
    values, counts = np.unique(gained, return_counts=True)
    return _bootstrap(tuple(values.tolist()), tuple(counts.tolist()), seed)


@lru_cache(maxsize=1024)  # a page asks again whenever it is redrawn
def _bootstrap(
    values: tuple[float, ...], counts: tuple[int, ...], seed: int
) -> tuple[float, float]:
    images = sum(counts)
    drawn = (
        np.random.default_rng(seed).multinomial(images, np.divide(counts, images), size=_DRAWS)
        @ np.array(values)
        / images
    )
    return percentile_interval(drawn)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return a family of p-values, corrected by Holm's step-down method (1979), in their order."""
    order, corrected, least = np.argsort(p_values, kind="stable"), [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = float(least)
    return corrected


def is_different(claim: Claim, corrected_p: float) -> bool:
    """Return whether the corrected p is at most 5 % and the interval excludes 0."""
    return corrected_p <= LEVEL and not claim.low <= 0 <= claim.high
