"""Curves over the epochs of a run, or over the rates of a learning-rate range test.

Curves that grow while the page is open are Altair charts. Streamlit updates these in place, but
replaces a Plotly chart whenever its data change, which then flickers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import altair as alt
import numpy as np
import pandas as pd
import plotly.graph_objects as go

from finetune_core.figures.axes import PERCENT, choose_tick_step
from finetune_core.figures.style import RUN_COLORS, TRAIN_COLOR, VAL_COLOR, WARM
from finetune_core.runs.smoothing import smooth

SMOOTHED = "Training batches, smoothed"
MOST_OVERLAID = len(RUN_COLORS)
# Pixels, with axis titles and legend. A page reserves them: a browser that draws its first chart
# loads the library for it, and what stood below moved down meanwhile.
CURVE_HEIGHT = 400
_MAX_POINTS = 600

Rows = Sequence[Mapping[str, Any]]
Row = TypeVar("Row")
Kind = Literal["loss", "accuracy", "balanced_accuracy", "macro_f1"]
_TITLES: dict[Kind, str] = {
    "loss": "Loss",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
}


def plot_training_curve(
    kind: Kind, steps: Rows, epochs: Rows, images: int, steps_per_epoch: int, total_epochs: int
) -> alt.LayerChart:
    """Plot a metric of a run over its epochs, for training and validation images.

    Args:
        kind: the metric.
        steps: StepEnded rows. Loss and accuracy of batches are smoothed and thinned out.
        epochs: EpochEnded rows, which hold the other metrics.
        images: number of training images in an epoch.
        steps_per_epoch: number of steps in an epoch.
        total_epochs: number of epochs on the axis.
    """
    training = SMOOTHED if kind in ("loss", "accuracy") else "Training"
    if kind in ("loss", "accuracy"):
        values = smooth(steps, kind, images, steps_per_epoch, total_epochs)
        points = [
            (training, row["epoch"] - 1 + row["step"] / steps_per_epoch, value, False, 0)
            for row, value in _thin_out(list(zip(steps, values, strict=True)))
        ]
        points += [("Validation", row["epoch"], row[f"val_{kind}"], True, 0) for row in epochs]
    else:
        series_of = (("Training", "train_scores"), ("Validation", "val_scores"))
        points = [
            (series, row["epoch"], row[scores][kind], True, 0)
            for series, scores in series_of
            for row in epochs
            if row.get(scores)
        ]
    return _plot_curves(
        kind,
        points,
        {training: (TRAIN_COLOR, [2, 2]), "Validation": (VAL_COLOR, [1, 0])},
        total_epochs,
        2,
    )


def plot_live_comparison(
    kind: Kind, runs: Sequence[tuple[str, Rows]], epochs: int = 1
) -> alt.LayerChart:
    """Plot validation loss or accuracy of several runs as they train.

    Args:
        kind: the metric.
        runs: (title, EpochEnded rows). Runs with the same title look alike.
        epochs: number of epochs on the axis.
    """
    points = [
        (title, row["epoch"], row[f"val_{kind}"], True, index)
        for index, (title, rows) in enumerate(runs)
        for row in rows
    ]
    dashes = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
    titles = list(dict.fromkeys(title for title, _ in runs))
    styles = {
        title: (RUN_COLORS[i % len(RUN_COLORS)], dashes[i % len(dashes)])
        for i, title in enumerate(titles)
    }
    return _plot_curves(kind, points, styles, epochs, 1, alt.Scale(zero=False))


def plot_runs(kind: Kind, runs: Sequence[tuple[str, Rows]]) -> alt.LayerChart:
    """Plot loss or accuracy of several runs by epoch.

    Each run has one colour. Training is dashed, validation solid.

    Args:
        kind: the metric.
        runs: (title, EpochEnded rows), at most ``MOST_OVERLAID``.
    """
    points = [
        (title, split, row["epoch"], row[f"{name}_{kind}"])
        for title, rows in runs
        for row in rows
        for name, split in (("train", "Training"), ("val", "Validation"))
    ]
    data = pd.DataFrame(points, columns=["run", "split", "epoch", "value"])
    epochs = max([1, *(row["epoch"] for _, rows in runs for row in rows)])
    titles = [title for title, _ in runs]
    base = alt.Chart(data).encode(
        x=_make_epoch_axis(epochs),
        y=alt.Y(
            "value:Q",
            title=_TITLES[kind],
            scale=alt.Scale(zero=False),
            axis=alt.Axis(format=PERCENT) if kind != "loss" else alt.Axis(),
        ),
        color=alt.Color(
            "run:N",
            scale=alt.Scale(domain=titles, range=list(RUN_COLORS[: len(titles)])),
            legend=alt.Legend(
                title=None, orient="top", labelLimit=400, columns=1, symbolType="stroke"
            ),
        ),
        detail=["run:N", "split:N"],
        tooltip=[
            alt.Tooltip("run:N", title=" "),
            alt.Tooltip("split:N", title="Images"),
            alt.Tooltip("epoch:Q", title="Epoch"),
            alt.Tooltip("value:Q", title=_TITLES[kind], format=".3f" if kind == "loss" else ".1%"),
        ],
    )
    dash = alt.StrokeDash(
        "split:N",
        scale=alt.Scale(domain=["Training", "Validation"], range=[[3, 3], [1, 0]]),
        legend=alt.Legend(title=None, orient="bottom", symbolType="stroke"),
    )
    lines = base.mark_line(strokeWidth=2.5, clip=True).encode(strokeDash=dash)
    marks = base.transform_filter("datum.split == 'Validation'").mark_point(
        filled=True, size=50, opacity=1
    )
    chart: alt.LayerChart = lines + marks
    return chart


def plot_lr_range_test(
    rates: Sequence[float], losses: Sequence[float], suggestion: float | None
) -> go.Figure:
    """Plot the loss against the learning rate of a range test, and the suggested rate."""
    figure = go.Figure(
        go.Scatter(
            x=list(rates),
            y=list(losses),
            mode="lines",
            line={"color": TRAIN_COLOR, "width": 2.5},
            hovertemplate="rate %{x:.1e}: loss %{y:.3f}<extra></extra>",
        )
    )
    if suggestion is not None:
        figure.add_vline(
            suggestion,
            line={"color": WARM, "width": 2, "dash": "dash"},
            annotation_text=f"{suggestion:g}",
        )
    figure.update_xaxes(type="log", title_text="Learning rate", exponentformat="power")
    figure.update_yaxes(title_text="Training loss, smoothed")
    figure.update_layout(height=320, margin={"l": 10, "r": 10, "t": 20, "b": 10})
    return figure


def _plot_curves(
    kind: Kind,
    points: Sequence[tuple[str, float, float, bool, int]],
    styles: Mapping[str, tuple[str, list[int]]],
    epochs: int,
    legend_columns: int,
    scale: alt.Scale | None = None,
) -> alt.LayerChart:
    """Plot lines over epochs.

    Args:
        kind: the metric.
        points: (series, epoch, value, whether it has a marker, index of the line in its series).
        styles: series -> (colour, dash).
        epochs: number of epochs on the axis.
        legend_columns: number of columns of the legend.
        scale: of the y axis. None starts at 0.
    """
    data = pd.DataFrame(points, columns=["series", "epoch", "value", "marked", "line"])
    names = list(styles)
    legend = alt.Legend(
        title=None, orient="top", labelLimit=400, columns=legend_columns, symbolType="stroke"
    )
    percent, title = kind != "loss", _TITLES[kind]
    base = alt.Chart(data).encode(
        x=_make_epoch_axis(epochs),
        y=alt.Y(
            "value:Q",
            title=title,
            scale=scale or (alt.Scale(domain=[0, 1]) if percent else alt.Scale(zero=True)),
            axis=alt.Axis(format=PERCENT) if percent else alt.Axis(),
        ),
        detail="line:N",
        color=alt.Color(
            "series:N",
            scale=alt.Scale(domain=names, range=[styles[n][0] for n in names]),
            legend=legend,
        ),
        tooltip=[
            alt.Tooltip("series:N", title=" "),
            alt.Tooltip("epoch:Q", title="Epoch", format=".2~f"),
            alt.Tooltip("value:Q", title=title, format=".1%" if percent else ".3f"),
        ],
    )
    dashes = alt.StrokeDash(
        "series:N",
        scale=alt.Scale(domain=names, range=[styles[n][1] for n in names]),
        legend=legend,
    )
    lines = base.mark_line(strokeWidth=2.5, clip=True).encode(strokeDash=dashes)
    marks = base.transform_filter("datum.marked").mark_point(filled=True, size=60, opacity=1)
    chart: alt.LayerChart = lines + marks
    return chart


def _make_epoch_axis(epochs: int) -> alt.X:
    ticks = list(range(0, epochs + 1, choose_tick_step(epochs)))
    return alt.X(
        "epoch:Q",
        title="Epoch",
        scale=alt.Scale(domain=[0, epochs]),
        axis=alt.Axis(values=ticks, format="d", labelFlush=False),
    )


def _thin_out(rows: Sequence[Row]) -> Sequence[Row]:
    """Return at most ``_MAX_POINTS`` rows, evenly spaced, including the last."""
    if len(rows) <= _MAX_POINTS:
        return rows
    return [rows[index] for index in np.linspace(0, len(rows) - 1, _MAX_POINTS).astype(int)]
