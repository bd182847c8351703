"""Axes of shares and counts, for Plotly and Altair.

No tick appears twice or shows an impossible value, and counts have whole ticks.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

# d3 format with as many digits as distinguish the ticks at any zoom: 80%, 100%; 99.5%, 100%.
PERCENT = "~%"
_MAX_TICKS = 6
_MIN_SPAN = 0.01  # of an axis of shares: one percentage point
_PAD = 0.04  # share of the span, less than the smallest gap between two Plotly ticks


def make_share_axis(values: Iterable[float]) -> dict[str, Any]:
    """Return a Plotly axis that contains all ``values``, which are shares.

    NaN and infinity are ignored. The axis ends before a tick below 0 or above 100 %. Hover texts
    (``%{y}``) have as many digits as distinguish the values.
    """
    finite = _keep_finite(values)
    hover = choose_percent_format(finite)
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    missing = max(0.0, _MIN_SPAN - (high - low))
    low, high = low - missing / 2, high + missing / 2
    if high > 1:
        low, high = low - (high - 1), 1.0
    elif low < 0:
        low, high = 0.0, high - low
    pad = _PAD * (high - low)
    return {
        "tickformat": PERCENT,
        "hoverformat": hover,
        "range": [max(low - pad, -pad), min(high + pad, 1 + pad)],
    }


def make_count_axis(maximum: float) -> dict[str, Any]:
    """Return the ticks of a Plotly axis of counts from 0 to ``maximum``."""
    return {
        "tickmode": "linear",
        "tick0": 0,
        "dtick": choose_tick_step(maximum),
        "rangemode": "tozero",
    }


def choose_tick_step(maximum: float) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50 … that leaves few ticks from 0 to ``maximum``."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if maximum <= digit * power * _MAX_TICKS:
                return digit * power
        power *= 10


def choose_percent_format(values: Iterable[float]) -> str:
    """Return a d3 format for shares with one to three decimals of a percent.

    The decimals distinguish ``values``, and keep a share just above 0 or below 100 % from being
    rounded to it.
    """
    finite = _keep_finite(values)
    span = finite.max() - finite.min() if len(finite) else 1.0
    digits = 1 if span == 0 or span >= 0.02 else 2 if span >= 0.002 else 3
    inside = finite[(finite > 0) & (finite < 1)]
    edge = min(inside.min(), 1 - inside.max()) if len(inside) else 1.0
    while digits < 3 and edge < 0.5 * 10.0 ** -(digits + 2):
        digits += 1
    return f".{digits}%"


def _keep_finite(values: Iterable[float]) -> np.ndarray:
    array = np.asarray(list(values), dtype=float)
    finite: np.ndarray = array[np.isfinite(array)]
    return finite
