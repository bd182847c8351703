"""Arrays in, figures out. Cold is frozen, warm is training; training and validation keep one colour each.

Curves are Altair charts: Streamlit updates those in place, while it replaces a Plotly chart, which then flickers, whenever
its data change. Everything that does not change while it is looked at is a Plotly figure.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt
import numpy as np
import pandas as pd
import plotly.graph_objects as go

TRAIN_COLOR, VAL_COLOR = "#8b73d6", "#1fa287"  # told apart in light, dark and by the colour-blind; dashes tell them, too
TEST_COLOR = "#7d8590"
# Runs get neither the cold and warm of stages nor the colours of the splits.
RUN_COLORS = ("#c2568f", "#a88a12", "#4f6bd8", "#6f9a2e", "#8c5a3c", "#7c8791")
# Opaque: plotly picks black or white labels by the cell, whatever the page behind it.
_COLD_SCALE = ((0.0, "#edf5fa"), (1.0, "#0d5c8c"))
_BEST_COLOR, _OTHER_COLOR = "#51677a", "#a9b8c4"
_COLD, _WARM = "#5aa9d6", "#f08a3c"
# Okabe & Ito's colours, which the colour-blind can tell apart, then three more; further classes get another symbol.
_CLASS_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b5a800", "#7a5195", "#8c5a3c", "#7c8791")
_SYMBOLS = ("circle", "diamond", "square", "cross", "x", "triangle-up", "star")
_MAX_POINTS = 600
_MOST_LABELLED_CELLS = 20

Rows = Sequence[Mapping[str, Any]]
Kind = Literal["loss", "accuracy"]


def training_curve(kind: Kind, steps: Rows, epochs: Rows, steps_per_epoch: int, total_epochs: int) -> alt.LayerChart:
    """Loss or accuracy of one run over its epochs, training and validation.

    Args:
        steps: StepEnded rows; shown as means over the epoch so far, thinned out.
        epochs: EpochEnded rows.
    """
    points = [
        ("Training", row["epoch"] - 1 + row["step"] / steps_per_epoch, row[f"epoch_{kind}"], False) for row in _thinned(steps)
    ]
    points += [("Validation", row["epoch"], row[f"val_{kind}"], True) for row in epochs]
    return _curves(kind, points, {"Training": (TRAIN_COLOR, [2, 2]), "Validation": (VAL_COLOR, [1, 0])}, total_epochs, 2)


def compared_curve(kind: Kind, runs: Sequence[tuple[str, Rows]]) -> alt.LayerChart:
    """Validation loss or accuracy of several runs on shared axes; ``runs`` are (label, EpochEnded rows)."""
    points = [(label, row["epoch"], row[f"val_{kind}"], True) for label, epochs in runs for row in epochs]
    dashes = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
    styles = {label: (RUN_COLORS[i % len(RUN_COLORS)], dashes[i % len(dashes)]) for i, (label, _) in enumerate(runs)}
    return _curves(kind, points, styles, max((len(epochs) for _, epochs in runs), default=1), 1)


def confusion_heatmap(confusion: np.ndarray, classes: Sequence[str]) -> go.Figure:
    """True classes by row, predicted by column, coloured by the share of the row, labelled with counts."""
    totals = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, totals, out=np.zeros(confusion.shape), where=totals > 0)
    names = [_escaped(name) for name in classes]
    # Categories are numbered, not named: two names may look the same to plotly, and "3" must not become a number.
    at = list(range(len(names)))
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=at,
            y=at,
            zmin=0,
            zmax=1,
            colorscale=_COLD_SCALE,
            customdata=confusion,
            hovertemplate="%{customdata} images<br>true: %{y}<br>predicted: %{x}<extra></extra>",
            text=np.where(confusion > 0, confusion.astype(str), "") if len(names) <= _MOST_LABELLED_CELLS else None,
            texttemplate="%{text}" if len(names) <= _MOST_LABELLED_CELLS else None,
            showscale=False,
            xgap=1,
            ygap=1,
        )
    )
    ticks = {"tickmode": "array", "tickvals": at, "ticktext": [_label(name) for name in classes]} if len(names) <= 60 else {}
    figure.update_xaxes(title_text="Predicted", side="bottom", showgrid=False, zeroline=False, **ticks)
    figure.update_yaxes(title_text="True", autorange="reversed", showgrid=False, zeroline=False, **ticks)
    figure.update_layout(margin={"l": 10, "r": 10, "t": 10, "b": 10}, height=min(760, 240 + 26 * len(names)))
    return figure


def probability_bars(names: Sequence[str], probabilities: Sequence[float]) -> go.Figure:
    """Classes with their probabilities, the most probable on top."""
    at = list(range(len(names)))
    figure = go.Figure(
        go.Bar(
            x=list(probabilities),
            y=at,
            orientation="h",
            marker_color=[_BEST_COLOR, *[_OTHER_COLOR] * (len(names) - 1)],
            text=[f"{p:.1%}" for p in probabilities],
            textposition="auto",
            hoverinfo="skip",
        )
    )
    figure.update_yaxes(autorange="reversed", tickmode="array", tickvals=at, ticktext=[_label(name) for name in names])
    figure.update_xaxes(range=[0, 1], tickformat=".0%")
    figure.update_layout(margin={"l": 10, "r": 10, "t": 10, "b": 10}, height=60 + 34 * len(names))
    return figure


def class_counts(counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> go.Figure:
    """Images a class, stacked by split; ``counts`` is split -> one number a class."""
    figure = go.Figure()
    at = list(range(len(classes)))
    names = {"train": "Training", "val": "Validation", "test": "Test"}
    colors = {"train": TRAIN_COLOR, "val": VAL_COLOR, "test": TEST_COLOR}
    for split, values in counts.items():
        figure.add_bar(x=at, y=list(values), name=names[split], marker_color=colors[split])
    ticks = [_label(name) for name in classes]
    if len(classes) <= 60:
        figure.update_xaxes(tickmode="array", tickvals=at, ticktext=ticks)
    figure.update_layout(
        barmode="stack",
        height=320,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        yaxis_title="Images",
        legend={"orientation": "h", "y": 1.12},
    )
    return figure


def rate_curve(rates: Sequence[float], losses: Sequence[float], suggestion: float | None) -> go.Figure:
    """Loss at ever higher learning rates, and the rate that is suggested."""
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
        figure.add_vline(suggestion, line={"color": _WARM, "width": 2, "dash": "dash"}, annotation_text=f"{suggestion:g}")
    figure.update_xaxes(type="log", title_text="Learning rate", exponentformat="power")
    figure.update_yaxes(title_text="Training loss, smoothed")
    figure.update_layout(height=320, margin={"l": 10, "r": 10, "t": 20, "b": 10})
    return figure


def feature_map(places: pd.DataFrame, by: str, names: Mapping[str, str]) -> go.Figure:
    """A point an image, coloured by class or split; a point carries its image's id.

    Args:
        places: ``id, x, y`` and the column ``by``.
        names: value of that column -> what it is called, in the order of the legend.
    """
    figure = go.Figure()
    split_colors = {"train": TRAIN_COLOR, "val": VAL_COLOR, "test": TEST_COLOR}
    for number, (value, name) in enumerate(names.items()):
        rows = places[places[by] == value]
        if rows.empty:
            continue
        color = split_colors[value] if by == "split" else _CLASS_COLORS[number % len(_CLASS_COLORS)]
        symbol = _SYMBOLS[number // len(_CLASS_COLORS) % len(_SYMBOLS)]
        figure.add_scattergl(
            x=rows["x"],
            y=rows["y"],
            mode="markers",
            name=_label(name),
            customdata=rows[["id"]].to_numpy(),
            text=[_label(sample, 60) for sample in rows["id"]],
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
            marker={"size": 6 if len(places) < 3000 else 4, "color": color, "symbol": symbol, "opacity": 0.8},
        )
    hidden = {"showgrid": False, "zeroline": False, "showticklabels": False, "title": None}
    figure.update_xaxes(**hidden)
    figure.update_yaxes(**hidden)
    figure.update_layout(
        height=560, margin={"l": 10, "r": 10, "t": 10, "b": 10}, legend={"itemsizing": "constant"}, dragmode="lasso"
    )
    return figure


def probe_curve(probes: Sequence[Any], cut: str) -> go.Figure:
    """Accuracy of a linear probe by stage, with its standard error; what would stay frozen is cold, what would train is warm.

    Args:
        probes: ``Probe`` of each stage, input to head.
        cut: the first stage that the suggestion trains.
    """
    names = [one.stage for one in probes]
    frozen = names.index(cut) if cut in names else len(names)
    figure = go.Figure(
        go.Scatter(
            x=names,
            y=[one.accuracy for one in probes],
            error_y={"array": [one.error for one in probes], "thickness": 1.5, "color": _OTHER_COLOR},
            mode="lines+markers+text",
            line={"color": _OTHER_COLOR, "width": 2},
            marker={"size": 14, "color": [_COLD if at < frozen else _WARM for at in range(len(names))]},
            text=[f"{one.accuracy:.1%}" for one in probes],
            textposition="top center",
            hovertemplate="%{x}: %{text}<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="Stage, input to head", type="category")
    figure.update_yaxes(title_text="Validation accuracy of a linear probe", tickformat=".0%", rangemode="tozero")
    figure.update_layout(height=380, margin={"l": 10, "r": 10, "t": 20, "b": 10})
    return figure


def _curves(
    kind: Kind,
    points: Sequence[tuple[str, float, float, bool]],
    styles: Mapping[str, tuple[str, list[int]]],
    epochs: int,
    legend_columns: int,
) -> alt.LayerChart:
    """Lines over epochs; ``points`` are (series, epoch, value, marked), ``styles`` series -> (colour, dash)."""
    data = pd.DataFrame(points, columns=["series", "epoch", "value", "marked"])
    names = list(styles)
    legend = alt.Legend(
        title=None,
        orient="top",
        labelLimit=400,
        columns=legend_columns,
        symbolType="stroke",
    )
    percent = kind == "accuracy"
    base = alt.Chart(data).encode(
        x=alt.X(
            "epoch:Q",
            title="Epoch",
            scale=alt.Scale(domain=[0, epochs]),
            axis=alt.Axis(tickMinStep=1, tickCount=min(epochs, 10), format="d"),
        ),
        y=alt.Y(
            "value:Q",
            title=kind.capitalize(),
            scale=alt.Scale(domain=[0, 1]) if percent else alt.Scale(zero=True),
            axis=alt.Axis(format=".0%") if percent else alt.Axis(),
        ),
        color=alt.Color("series:N", scale=alt.Scale(domain=names, range=[styles[n][0] for n in names]), legend=legend),
        tooltip=[
            alt.Tooltip("series:N", title=" "),
            alt.Tooltip("epoch:Q", title="Epoch", format=".2~f"),
            alt.Tooltip("value:Q", title=kind.capitalize(), format=".1%" if percent else ".3f"),
        ],
    )
    dashes = alt.StrokeDash("series:N", scale=alt.Scale(domain=names, range=[styles[n][1] for n in names]), legend=legend)
    lines = base.mark_line(strokeWidth=2.5, clip=True).encode(strokeDash=dashes)
    marks = base.transform_filter("datum.marked").mark_point(filled=True, size=60, opacity=1)
    return (lines + marks).properties(height=320)


def _thinned(rows: Rows) -> Rows:
    """At most ``_MAX_POINTS`` rows, evenly spaced, the last one among them."""
    if len(rows) <= _MAX_POINTS:
        return rows
    return [rows[index] for index in np.linspace(0, len(rows) - 1, _MAX_POINTS).astype(int)]


def _label(name: str, letters: int = 18) -> str:
    return _escaped(name if len(name) <= letters else f"{name[: letters - 1]}…")


def _escaped(name: str) -> str:
    """A name for plotly, which takes tags in labels for markup, but knows no &quot;."""
    return html.escape(name, quote=False)
