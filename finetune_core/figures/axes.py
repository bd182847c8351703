"""Axes of numbers: no tick twice, none that cannot be, whole numbers where there are no others; plotly and Altair alike."""

from collections.abc import Iterable
from typing import Any

import numpy as np

PERCENT = "~%"  # d3: as many digits as the ticks differ in, at any zoom: 80%, 100%; 99.5%, 100%
_MOST_TICKS = 6
_LEAST_SPAN = 0.01  # of an axis of shares: one point
_PAD = 0.04  # of the span; less than plotly ever leaves between two ticks


def share_axis(values: Iterable[float]) -> dict[str, Any]:
    """A plotly axis on which all ``values`` (0…1, NaN passed over) have room; it ends before a tick below 0 or above 100 %. What a hover
    text says of it (``%{y}``) has the digits that tell them apart."""
    finite = _finite(values)
    hover = hover_percent(finite)
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    missing = max(0.0, _LEAST_SPAN - (high - low))
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


def whole_axis(most: float) -> dict[str, Any]:
    """Ticks of a plotly axis of counts, of epochs or of images, that reaches from 0 to ``most``."""
    return {"tickmode": "linear", "tick0": 0, "dtick": whole_step(most), "rangemode": "tozero"}


def whole_step(most: float) -> int:
    """The least of 1, 2, 5, 10, 20, 50 … that leaves few ticks from 0 to ``most``."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if most <= digit * power * _MOST_TICKS:
                return digit * power
        power *= 10


def hover_percent(values: Iterable[float]) -> str:
    """A d3 format of shares: one digit after the point, or as many (three at most) as tell ``values`` apart and keep what is not quite 0 or
    100 % from reading so."""
    finite = _finite(values)
    span = finite.max() - finite.min() if len(finite) else 1.0
    digits = 1 if span == 0 or span >= 0.02 else 2 if span >= 0.002 else 3
    inside = finite[(finite > 0) & (finite < 1)]
    edge = min(inside.min(), 1 - inside.max()) if len(inside) else 1.0
    while digits < 3 and edge < 0.5 * 10.0 ** -(digits + 2):
        digits += 1
    return f".{digits}%"


def _finite(values: Iterable[float]) -> np.ndarray:
    given = np.asarray(list(values), dtype=float)
    finite: np.ndarray = given[np.isfinite(given)]
    return finite
