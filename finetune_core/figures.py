"""Arrays in, plotly figures out. Cold is frozen, warm is training; training and validation keep one colour each."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go

TRAIN_COLOR, VAL_COLOR = "#8b73d6", "#1fa287"  # told apart in light, dark and by the colour-blind; dashes tell them, too
RUN_COLORS = ("#d9622b", "#2b86b8", "#8b73d6", "#1fa287", "#b8517a", "#7d8590")
_COLD_SCALE = ((0.0, "rgba(43,134,184,0.04)"), (1.0, "rgba(43,134,184,1)"))
_MAX_POINTS = 600
_MOST_LABELLED_CELLS = 20

Rows = Sequence[Mapping[str, Any]]
Kind = Literal["loss", "accuracy"]


def training_curve(kind: Kind, steps: Rows, epochs: Rows, steps_per_epoch: int, total_epochs: int) -> go.Figure:
    """Loss or accuracy of one run over its epochs, training and validation.

    Args:
        steps: StepEnded rows; shown as means over the epoch so far, thinned out.
        epochs: EpochEnded rows.
    """
    figure = _curve_axes(kind, total_epochs)
    shown = _thinned(steps)
    at = [row["epoch"] - 1 + row["step"] / steps_per_epoch for row in shown]
    _line(figure, kind, at, [row[f"epoch_{kind}"] for row in shown], "Training", TRAIN_COLOR, dash="dot", mode="lines")
    ends = [row["epoch"] for row in epochs]
    _line(figure, kind, ends, [row[f"val_{kind}"] for row in epochs], "Validation", VAL_COLOR, mode="lines+markers")
    return figure


def compared_curve(kind: Kind, runs: Sequence[tuple[str, Rows]]) -> go.Figure:
    """Validation loss or accuracy of several runs on shared axes; ``runs`` are (label, EpochEnded rows)."""
    figure = _curve_axes(kind, max((len(epochs) for _, epochs in runs), default=1))
    for index, (label, epochs) in enumerate(runs):
        color, dash = RUN_COLORS[index % len(RUN_COLORS)], ("solid", "dash", "dot", "dashdot")[index % 4]
        ends = [row["epoch"] for row in epochs]
        _line(figure, kind, ends, [row[f"val_{kind}"] for row in epochs], label, color, dash=dash, mode="lines+markers")
    return figure


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
            customdata=np.dstack([confusion, *np.broadcast_arrays(np.array(names)[:, None], np.array(names)[None, :])]),
            hovertemplate="%{customdata[0]} images of %{customdata[1]}<br>were taken for %{customdata[2]}<extra></extra>",
            showscale=False,
            xgap=1,
            ygap=1,
        )
    )
    if len(names) <= _MOST_LABELLED_CELLS:
        # A trace of its own keeps the page's text colour; a heatmap's own labels take theirs from the opaque colour.
        row, column = np.nonzero(confusion)
        figure.add_scatter(x=column, y=row, text=confusion[row, column], mode="text", hoverinfo="skip", showlegend=False)
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
            marker_color=[RUN_COLORS[0], *[RUN_COLORS[1]] * (len(names) - 1)],
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
    colors = {"train": TRAIN_COLOR, "val": VAL_COLOR, "test": RUN_COLORS[5]}
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


def _curve_axes(kind: Kind, epochs: int) -> go.Figure:
    figure = go.Figure()
    figure.update_xaxes(range=[0, epochs * 1.02], title_text="Epoch", dtick=_epoch_tick(epochs))
    if kind == "loss":
        figure.update_yaxes(title_text="Loss", rangemode="tozero")
    else:
        figure.update_yaxes(title_text="Accuracy", tickformat=".0%", range=[0, 1.02])
    figure.update_layout(
        height=340,
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        hovermode="x unified",
        uirevision="keep",  # a reader's zoom stays when new points arrive
    )
    return figure


def _epoch_tick(epochs: int) -> int:
    """Whole epochs only, at most about ten of them."""
    return max(1, round(epochs / 10))


def _line(
    figure: go.Figure,
    kind: Kind,
    x: Sequence[float],
    y: Sequence[float],
    name: str,
    color: str,
    *,
    mode: str,
    dash: str = "solid",
) -> None:
    figure.add_scatter(
        x=x,
        y=y,
        name=_escaped(name),
        mode=mode,
        line={"color": color, "dash": dash, "width": 2.5},
        hovertemplate="%{y:.3f}" if kind == "loss" else "%{y:.1%}",
    )


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
