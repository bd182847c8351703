"""Figures of one run's predictions."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from finetune_core.figures.style import BEST_COLOR, COLD_SCALE, MARGIN, OTHER_COLOR, escaped, label

_MOST_LABELLED_CELLS = 20


def confusion_heatmap(confusion: np.ndarray, classes: Sequence[str]) -> go.Figure:
    """True classes by row, predicted by column, coloured by the share of the row, labelled with counts."""
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    names = [escaped(name) for name in classes]
    # Categories are numbered, not named: two names may look the same to plotly, and "3" must not become a number.
    at = list(range(len(names)))
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=at,
            y=at,
            zmin=0,
            zmax=1,
            colorscale=COLD_SCALE,
            customdata=confusion,
            hovertemplate="%{customdata} images<br>true: %{y}<br>predicted: %{x}<extra></extra>",
            text=np.where(confusion > 0, confusion.astype(str), "") if len(names) <= _MOST_LABELLED_CELLS else None,
            texttemplate="%{text}" if len(names) <= _MOST_LABELLED_CELLS else None,
            showscale=False,
            xgap=1,
            ygap=1,
        )
    )
    ticks = {"tickmode": "array", "tickvals": at, "ticktext": [label(name) for name in classes]} if len(names) <= 60 else {}
    figure.update_xaxes(title_text="Predicted", side="bottom", showgrid=False, zeroline=False, **ticks)
    figure.update_yaxes(title_text="True", autorange="reversed", showgrid=False, zeroline=False, **ticks)
    figure.update_layout(margin=MARGIN, height=min(760, 240 + 26 * len(names)))
    return figure


def probability_bars(names: Sequence[str], probabilities: Sequence[float]) -> go.Figure:
    """Classes with their probabilities, the most probable on top."""
    at = list(range(len(names)))
    figure = go.Figure(
        go.Bar(
            x=list(probabilities),
            y=at,
            orientation="h",
            marker_color=[BEST_COLOR, *[OTHER_COLOR] * (len(names) - 1)],
            text=[f"{p:.1%}" for p in probabilities],
            textposition="auto",
            hoverinfo="skip",
        )
    )
    figure.update_yaxes(autorange="reversed", tickmode="array", tickvals=at, ticktext=[label(name) for name in names])
    figure.update_xaxes(range=[0, 1], tickformat=".0%")
    figure.update_layout(margin=MARGIN, height=60 + 34 * len(names))
    return figure
