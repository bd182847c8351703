"""Curves of the change of each stage while a run trains, in Altair (see ``curves.py``)."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt
import numpy as np
import pandas as pd

_MAX_POINTS = 150  # per stage
_DASHES = ([1, 0], [6, 3], [2, 2])

Quantity = Literal["learning_rate", "gradient_norm", "update"]
TITLES: dict[Quantity, str] = {
    "learning_rate": "Learning rate",
    "gradient_norm": "Gradient norm",
    "update": "Relative update size",
}


def plot_stage_curve(
    quantity: Quantity,
    measured: Sequence[Mapping[str, Any]],
    stages: Sequence[str],
    steps_per_epoch: int,
    epochs: int,
) -> alt.Chart:
    """Plot one line per training stage over the epochs, on a logarithmic scale.

    Lines are warmer towards the head.

    Args:
        quantity: the quantity.
        measured: StepEnded rows with ``stages`` (``training/step/movement.py``), which are thinned
            out.
        stages: names of all stages, input to head.
        steps_per_epoch: number of steps in an epoch.
        epochs: number of epochs on the axis.
    """
    chosen = np.unique(
        np.linspace(0, len(measured) - 1, min(len(measured), _MAX_POINTS)).astype(int)
        if measured
        else np.empty(0, int)
    )
    points = [
        (stage, row["epoch"] - 1 + row["step"] / steps_per_epoch, values[quantity])
        for row in (measured[index] for index in chosen)
        for stage, values in row["stages"].items()
        if values[quantity] > 0  # the scale is logarithmic
    ]
    data = pd.DataFrame(points, columns=["stage", "epoch", "value"])
    names = [stage for stage in stages if stage in set(data["stage"])]
    legend = alt.Legend(title=None, orient="top", columns=4, symbolType="stroke")
    chart: alt.Chart = (
        alt.Chart(data)
        .mark_line(strokeWidth=2.2, clip=True)
        .encode(
            x=alt.X(
                "epoch:Q",
                title="Epoch",
                scale=alt.Scale(domain=[0, epochs]),
                axis=alt.Axis(tickMinStep=1, format="d"),
            ),
            y=alt.Y(
                "value:Q",
                title=TITLES[quantity],
                scale=alt.Scale(type="log", nice=False),
                axis=alt.Axis(format="~g", tickCount=5),
            ),
            color=alt.Color(
                "stage:N",
                scale=alt.Scale(domain=names, range=_make_warm_colors(len(names))),
                legend=legend,
                sort=names,
            ),
            strokeDash=alt.StrokeDash(
                "stage:N",
                scale=alt.Scale(
                    domain=names,
                    range=[_DASHES[index % len(_DASHES)] for index in range(len(names))],
                ),
                legend=legend,
                sort=names,
            ),
            tooltip=[
                alt.Tooltip("stage:N", title="Stage"),
                alt.Tooltip("epoch:Q", title="Epoch", format=".2~f"),
                alt.Tooltip("value:Q", title=TITLES[quantity], format=".2~e"),
            ],
        )
        .properties(height=300)
    )
    return chart


def _make_warm_colors(count: int) -> list[str]:
    """Return colours from gold to ember red, of a lightness that suits light and dark pages."""
    hues = np.linspace(48, 4, max(count, 2))[-count:] / 360
    colors = [colorsys.hls_to_rgb(hue, 0.5, 0.85) for hue in hues]
    return ["#" + "".join(f"{round(255 * part):02x}" for part in color) for color in colors]
