"""Figures of one run's predictions."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from finetune_core.evaluation.single_run.curves import OneVsRest
from finetune_core.figures.axes import make_share_axis
from finetune_core.figures.style import (
    BEST_COLOR,
    CLASS_COLORS,
    COLD_SCALE,
    COLD_SCALE_DARK,
    LEGEND,
    MARGIN,
    OTHER_COLOR,
    SYMBOLS,
    WARM,
    escape_plotly,
    format_label,
)
from finetune_core.formatting import format_percent

Shares = Literal["images", "true", "predicted"]

_MAX_LABELLED = 20
_MAX_NAMED = 40
_MIN_SHADE = 0.25  # of a single image, on the colour scale
_DASHES = ("solid", "dash", "dot", "dashdot")


def plot_confusion_matrix(
    confusion: np.ndarray,
    classes: Sequence[str],
    shares: Shares = "images",
    order: Sequence[int] | None = None,
    *,
    chosen: tuple[int | None, int | None] = (None, None),
    dark: bool = False,
) -> go.Figure:
    """Plot a confusion matrix, with true classes by row and predicted classes by column.

    Each cell holds an invisible point, because points of heat maps cannot be selected. The point's
    ``customdata`` is the true label times the number of classes, plus the predicted label.

    Args:
        confusion: numbers of images, ``[classes, classes]``.
        classes: names of the classes.
        shares: ``images``, or shares of the ``true`` class (row) or of the ``predicted`` class
            (column). Numbers of images share one colour scale over the whole matrix, shares range
            from 0 to 1.
        order: order of the classes. None keeps the order of ``classes``.
        chosen: true and predicted label of the cell to outline. None outlines the whole column or
            row.
        dark: whether the page is dark, so that low values are dark, too.
    """
    order = list(range(len(classes))) if order is None else list(order)
    counts = confusion[np.ix_(order, order)]
    totals = counts.sum(axis=0 if shares == "predicted" else 1, keepdims=True)
    values = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    labelled = len(order) <= _MAX_LABELLED
    texts = np.vectorize(_format_percent, otypes=[str])(values)
    if shares == "images":
        values, texts = _shade_counts(counts), counts.astype(str)
    # Categories are numbers, because Plotly merges equal names and reads "3" as a number.
    positions = list(range(len(order)))
    figure = go.Figure(
        go.Heatmap(
            z=values,
            x=positions,
            y=positions,
            zmin=0,
            zmax=1,
            colorscale=COLD_SCALE_DARK if dark else COLD_SCALE,
            text=np.where(counts > 0, texts, "") if labelled else None,
            texttemplate="%{text}" if labelled else None,
            hoverinfo="skip",
            showscale=False,
            xgap=1,
            ygap=1,
        )
    )
    _add_cells(figure, counts, order, classes)
    _add_outline(figure, order, *chosen)
    ticks: dict[str, Any] = {
        "tickmode": "array",
        "tickvals": positions,
        "ticktext": [format_label(classes[one]) for one in order],
    }
    if len(order) > _MAX_NAMED:
        ticks = {"showticklabels": False}
    # Slanting names end at their column. Otherwise the last name would be cut off.
    slant = {"autotickangles": [0, -45, -90]}
    figure.update_xaxes(
        title_text="Predicted", side="bottom", showgrid=False, zeroline=False, **ticks, **slant
    )
    figure.update_yaxes(
        title_text="True", autorange="reversed", showgrid=False, zeroline=False, **ticks
    )
    # Without a distance limit, a click anywhere in a cell selects its point.
    height = min(760, 240 + 26 * len(order))
    figure.update_layout(
        margin=MARGIN,
        height=height,
        hovermode="closest",
        hoverdistance=-1,
        dragmode=False,
        showlegend=False,
    )
    return figure


def _shade_counts(counts: np.ndarray) -> np.ndarray:
    """Return shades from 0 to 1, by square root, so that one image differs from none."""
    minimum, maximum = _MIN_SHADE, np.sqrt(max(1, counts.max()))
    shades: np.ndarray = np.where(
        counts > 0, minimum + (1 - minimum) * np.sqrt(counts) / maximum, 0.0
    )
    return shades


def _add_cells(
    figure: go.Figure, counts: np.ndarray, order: Sequence[int], classes: Sequence[str]
) -> None:
    rows, columns = (axis.ravel() for axis in np.indices(counts.shape))
    names = [escape_plotly(classes[one]) for one in order]
    figure.add_scatter(
        x=columns,
        y=rows,
        mode="markers",
        marker={"opacity": 0},
        selected={"marker": {"opacity": 0}},
        unselected={"marker": {"opacity": 0}},
        customdata=np.array(order)[rows] * len(order) + np.array(order)[columns],
        text=[
            f"{counts[row, column]:,} images<br>true: {names[row]}<br>predicted: {names[column]}"
            for row, column in zip(rows, columns, strict=True)
        ],
        hovertemplate="%{text}<extra></extra>",
    )


def _add_outline(
    figure: go.Figure, order: Sequence[int], true: int | None, predicted: int | None
) -> None:
    """Outline cells with a shape, because Plotly's own selection is lost on every redraw."""
    if true is None and predicted is None:
        return
    (top, bottom), (left, right) = (
        (-0.5, len(order) - 0.5)
        if one is None
        else (order.index(one) - 0.5, order.index(one) + 0.5)
        for one in (true, predicted)
    )
    figure.add_shape(
        type="rect",
        x0=left,
        x1=right,
        y0=top,
        y1=bottom,
        line={"color": WARM, "width": 4},
        layer="above",
    )


def _format_percent(share: float) -> str:
    return format_percent(share, 0).replace(" ", "")


def plot_probabilities(names: Sequence[str], probabilities: Sequence[float]) -> go.Figure:
    """Plot the probabilities of classes, the most probable on top."""
    positions = list(range(len(names)))
    figure = go.Figure(
        go.Bar(
            x=list(probabilities),
            y=positions,
            orientation="h",
            marker_color=[BEST_COLOR, *[OTHER_COLOR] * (len(names) - 1)],
            text=[format_percent(p) for p in probabilities],
            textposition="auto",
            hoverinfo="skip",
        )
    )
    figure.update_yaxes(
        autorange="reversed",
        tickmode="array",
        tickvals=positions,
        ticktext=[format_label(name) for name in names],
    )
    figure.update_xaxes(**make_share_axis([0, 1]) | {"range": [0, 1.02]})
    figure.update_layout(margin=MARGIN, height=60 + 34 * len(names))
    return figure


def plot_roc_curves(curves: Mapping[str, OneVsRest]) -> go.Figure:
    """Plot ROC curves by class with their bands, and the diagonal of chance."""
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        line={"color": OTHER_COLOR, "dash": "dot"},
        name="chance level",
        hoverinfo="skip",
    )
    for number, (name, curve) in enumerate(curves.items()):
        _add_band(figure, number, curve.roc_band, "false_positives")
        figure.add_scatter(
            x=curve.roc["false_positives"],
            y=curve.roc["true_positives"],
            **_make_line_style(number, name),
        )
    return _set_share_axes(figure, "False positive rate", "True positive rate")


def plot_precision_recall_curves(curves: Mapping[str, OneVsRest]) -> go.Figure:
    """Plot precision-recall curves by class with their bands.

    The curves are drawn as steps, whose area is the average precision. A dotted line in the colour
    of the class shows the precision of chance, which is the prevalence of the class.
    """
    figure = go.Figure()
    # One legend entry for the chance levels of all classes.
    chance = {"color": OTHER_COLOR, "width": 1, "dash": "dot"}
    figure.add_scatter(
        x=[None], y=[None], mode="lines", line=chance, name="chance level (prevalence)"
    )
    for number, (name, curve) in enumerate(curves.items()):
        _add_band(figure, number, curve.recall_precision_band, "recall")
        figure.add_scatter(
            x=[0, 1],
            y=[curve.prevalence] * 2,
            mode="lines",
            line=chance | {"color": _get_class_color(number)},
            hovertemplate="chance level: %{y}<extra></extra>",
            legendgroup=str(number),
            showlegend=False,
        )
        points = curve.recall_precision
        figure.add_scatter(
            x=points["recall"], y=points["precision"], **_make_line_style(number, name, shape="vh")
        )
    return _set_share_axes(figure, "Recall", "Precision")


def _make_line_style(number: int, name: str, shape: str = "linear") -> dict[str, Any]:
    dash = _DASHES[number // len(CLASS_COLORS) % len(_DASHES)]
    line = {"color": _get_class_color(number), "width": 2, "dash": dash, "shape": shape}
    # Grouped by number, because shortened names may be equal.
    legend = {"name": format_label(name), "legendgroup": str(number)}
    return {"mode": "lines", "line": line, "hovertemplate": "%{x}, %{y}", **legend}


def _add_band(figure: go.Figure, number: int, band: pd.DataFrame, x: str) -> None:
    figure.add_scatter(
        x=pd.concat([band[x], band[x][::-1]]),
        y=pd.concat([band["high"], band["low"][::-1]]),
        fill="toself",
        fillcolor=_get_class_color(number),
        opacity=0.15,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        legendgroup=str(number),
        showlegend=False,
    )


def _get_class_color(number: int) -> str:
    return CLASS_COLORS[number % len(CLASS_COLORS)]


def _set_share_axes(figure: go.Figure, x: str, y: str) -> go.Figure:
    figure.update_xaxes(title_text=x, **make_share_axis([0, 1]))
    figure.update_yaxes(title_text=y, **make_share_axis([0, 1]))
    figure.update_layout(height=420, margin=MARGIN, legend=LEGEND, showlegend=True)
    return figure


def plot_slices(rows: pd.DataFrame, overall: float, name: str) -> go.Figure:
    """Plot the accuracy of each slice with its interval, and that of all images.

    Args:
        rows: ``slice, images, accuracy, low, high``.
        overall: accuracy on all images.
        name: name of the accuracy, with its split.
    """
    positions = list(range(len(rows)))
    names = [
        f"{format_label(name, 24)} ({images:,})"
        for name, images in zip(rows["slice"], rows["images"], strict=True)
    ]
    figure = go.Figure(
        go.Scatter(
            x=rows["accuracy"],
            y=positions,
            mode="markers",
            marker={"size": 11, "color": BEST_COLOR},
            error_x={
                "array": rows["high"] - rows["accuracy"],
                "arrayminus": rows["accuracy"] - rows["low"],
                "color": OTHER_COLOR,
                "thickness": 2,
            },
            hovertemplate="%{x}<extra></extra>",
        )
    )
    figure.add_vline(x=overall, line={"color": OTHER_COLOR, "dash": "dot"})
    figure.update_xaxes(
        title_text=f"{name}, with its 95 % interval",
        **make_share_axis([*rows["low"], *rows["high"], overall]),
    )
    figure.update_yaxes(
        autorange="reversed", tickmode="array", tickvals=positions, ticktext=names, zeroline=False
    )
    figure.update_layout(height=90 + 36 * len(rows), margin=MARGIN)
    return figure


def plot_robustness(rows: pd.DataFrame, titles: Mapping[str, str], name: str) -> go.Figure:
    """Plot accuracy by severity, one line per corruption. All start at the clean images.

    Args:
        rows: ``corruption, severity, accuracy, low, high``. Clean images have the corruption
            ``none``.
        titles: corruption -> its title.
        name: name of the accuracy, with its split.
    """
    figure = go.Figure()
    clean = rows[rows["corruption"] == "none"]
    for number, (corruption, title) in enumerate(titles.items()):
        points = pd.concat([clean, rows[rows["corruption"] == corruption]])
        # Slightly offset, so that intervals do not overlap.
        figure.add_scatter(
            x=points["severity"]
            + (points["severity"] > 0) * 0.06 * (number - (len(titles) - 1) / 2),
            y=points["accuracy"],
            error_y={
                "array": points["high"] - points["accuracy"],
                "arrayminus": points["accuracy"] - points["low"],
                "thickness": 1,
            },
            mode="lines+markers",
            name=title,
            line={"color": CLASS_COLORS[number], "width": 2},
            marker={"size": 9, "symbol": SYMBOLS[number]},
            hovertemplate="%{y}",
        )
    figure.update_xaxes(
        tickmode="array",
        tickvals=[0, 1, 2, 3],
        ticktext=["clean", "mild", "middle", "strong"],
        range=[-0.15, 3.3],
    )
    figure.update_yaxes(title_text=name, **make_share_axis([*rows["low"], *rows["high"]]))
    figure.update_layout(height=440, margin=MARGIN, legend=LEGEND)
    return figure
