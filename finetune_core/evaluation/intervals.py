"""Confidence intervals of shares and of differences."""

import numpy as np

_QUANTILE = 1.959963984540054  # of the normal distribution, at 97.5 %


def wilson(
    right: np.ndarray | float, images: np.ndarray | float, quantile: float = _QUANTILE
) -> tuple[np.ndarray, np.ndarray]:
    """Return Wilson's intervals (1927) of shares ``right / images``; NaN where there is no image.

    Args:
        right: numbers of correct images.
        images: numbers of images.
        quantile: half the interval's width in standard errors; by default the level is 95 %.

    Returns:
        The lower and the upper ends.
    """
    right, images = np.asarray(right, dtype=float), np.asarray(images, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        share, unit = right / images, quantile**2 / images
        centre = (share + unit / 2) / (1 + unit)
        reach = np.sqrt(unit * (share * (1 - share) + unit / 4)) / (1 + unit)
    # Exact at the ends, where rounding would leave a trace: the interval contains 0 if there is no
    # success, and 1 if there is no failure.
    low, high = (
        np.where(right == 0, 0.0, centre - reach),
        np.where(right == images, 1.0, centre + reach),
    )
    return np.where(images > 0, low, np.nan), np.where(images > 0, high, np.nan)


def accuracy_interval(correct: int, images: int) -> tuple[float, float, float]:
    """Return a share with the ends of its 95 % interval (Wilson 1927); NaN if there is no image."""
    if not images:
        return float("nan"), float("nan"), float("nan")
    low, high = wilson(correct, images)
    return correct / images, float(low), float(high)


def difference_interval(
    one: tuple[float, float, float], other: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Return ``one - other`` with a 95 % interval, for values from independent samples.

    The interval is computed from the two intervals (MOVER, Zou & Donner 2008). For accuracies with
    Wilson's intervals it is Newcombe's (1998). NaN where a value is not defined.

    Args:
        one: value and the ends of its 95 % interval.
        other: value and the ends of its 95 % interval.
    """
    (a, a_low, a_high), (b, b_low, b_high) = one, other
    down, up = np.hypot(a - a_low, b_high - b), np.hypot(a_high - a, b - b_low)
    return a - b, a - b - float(down), a - b + float(up)
