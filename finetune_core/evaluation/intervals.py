"""Intervals of shares, and of the expected calibration error."""

import numpy as np

_QUANTILE = 1.959963984540054  # of the normal distribution, at 97.5 %


def wilson(
    right: np.ndarray | float, images: np.ndarray | float, quantile: float = _QUANTILE
) -> tuple[np.ndarray, np.ndarray]:
    """Return intervals (Wilson 1927) of shares ``right / images``; NaN of no images.

    Args:
        quantile: half the interval's width in standard errors; by default the interval has 95 %.
    """
    right, images = np.asarray(right, dtype=float), np.asarray(images, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        share, unit = right / images, quantile**2 / images
        centre = (share + unit / 2) / (1 + unit)
        reach = np.sqrt(unit * (share * (1 - share) + unit / 4)) / (1 + unit)
    # At the ends, where rounding would leave a trace: no failure allows for all, no success for
    # none.
    low, high = (
        np.where(right == 0, 0.0, centre - reach),
        np.where(right == images, 1.0, centre + reach),
    )
    return np.where(images > 0, low, np.nan), np.where(images > 0, high, np.nan)


def accuracy_interval(correct: int, images: int) -> tuple[float, float, float]:
    """Share, and its 95 % interval (Wilson 1927); NaN of no images."""
    if not images:
        return float("nan"), float("nan"), float("nan")
    low, high = wilson(correct, images)
    return correct / images, float(low), float(high)


def difference_interval(
    one: tuple[float, float, float], other: tuple[float, float, float]
) -> tuple[float, float, float]:
    """``one`` less ``other``, each a value with its 95 % interval, with a 95 % interval, as of samples that have nothing to do with each
    other: from the two intervals (MOVER, Zou & Donner 2008); of accuracies with Wilson's, Newcombe's (1998). NaN where one is not defined.
    """
    (a, a_low, a_high), (b, b_low, b_high) = one, other
    down, up = np.hypot(a - a_low, b_high - b), np.hypot(a_high - a, b - b_low)
    return a - b, a - b - float(down), a - b + float(up)
