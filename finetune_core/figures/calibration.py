"""Figures of calibration and of selective prediction."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from finetune_core.figures.axes import choose_percent_format, make_count_axis, make_share_axis
from finetune_core.figures.style import BEST_COLOR, LEGEND, MARGIN, OTHER_COLOR, WARM
from finetune_core.formatting import format_percent


def plot_reliability_diagram(bins: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Plot accuracy against confidence, with the number of images per bin below.

    Args:
        bins: name -> table of bins with ``low, high, confidence, accuracy, accuracy_low,
            accuracy_high, images``. At most two, and intervals are drawn for the first only.
    """
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[0.75, 0.25], vertical_spacing=0.05
    )
    ideal = {"color": OTHER_COLOR, "dash": "dot"}
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        line=ideal,
        name="perfect calibration",
        hoverinfo="skip",
        row=1,
        col=1,
    )
    looks = ((BEST_COLOR, "circle", "solid"), (WARM, "diamond", "dash"))
    for (name, rows), (color, symbol, dash) in zip(bins.items(), looks, strict=False):
        figure.add_scatter(
            x=rows["confidence"],
            y=rows["accuracy"],
            customdata=rows["images"],
            mode="lines+markers",
            name=name,
            line={"color": color, "width": 2, "dash": dash},
            marker={"symbol": symbol, "size": 8},
            error_y={
                "array": rows["accuracy_high"] - rows["accuracy"],
                "arrayminus": rows["accuracy"] - rows["accuracy_low"],
                "thickness": 1,
                "visible": symbol == "circle",
            },
            hovertemplate="confidence %{x}, accuracy %{y}<br>%{customdata} images",
            row=1,
            col=1,
        )
        figure.add_bar(
            x=(rows["low"] + rows["high"]) / 2,
            y=rows["images"],
            width=rows["high"] - rows["low"],
            customdata=[
                f"{format_percent(low)} to {format_percent(high)}"
                for low, high in zip(rows["low"], rows["high"], strict=True)
            ],
            marker={"color": color, "opacity": 0.5, "line": {"width": 1, "color": color}},
            name=name,
            showlegend=False,
            hovertemplate="confidence %{customdata}: %{y} images",
            row=2,
            col=1,
        )
    figure.update_xaxes(**make_share_axis([0, 1]))
    figure.update_xaxes(title_text="Confidence", row=2, col=1)
    figure.update_yaxes(title_text="Accuracy", **make_share_axis([0, 1]), row=1, col=1)
    figure.update_yaxes(
        title_text="Images",
        **make_count_axis(max(rows["images"].max() for rows in bins.values())),
        row=2,
        col=1,
    )
    figure.update_layout(height=480, margin=MARGIN, legend=LEGEND, barmode="overlay")
    return figure


def plot_coverage(curve: pd.DataFrame, share: float, accuracy: float) -> go.Figure:
    """Plot selective accuracy against coverage and mark the chosen point.

    Args:
        curve: ``coverage, accuracy, threshold``.
        share: coverage of the chosen point.
        accuracy: accuracy of the chosen point. NaN if nothing is predicted.
    """
    figure = go.Figure()
    confidence = choose_percent_format(curve["threshold"])
    figure.add_scatter(
        x=curve["coverage"],
        y=curve["accuracy"],
        customdata=curve["threshold"],
        mode="lines+markers" if len(curve) < 30 else "lines",
        line={"color": BEST_COLOR, "width": 2},
        hovertemplate=f"coverage: %{{x}}<br>selective accuracy: %{{y}}<br>confidence of at least "
        f"%{{customdata:{confidence}}}<extra></extra>",
    )
    figure.add_scatter(
        x=[share],
        y=[accuracy],
        mode="markers",
        marker={"size": 14, "color": WARM, "symbol": "diamond"},
        hoverinfo="skip",
    )
    figure.update_xaxes(title_text="Coverage", **make_share_axis([0, 1]))
    figure.update_yaxes(
        title_text="Selective accuracy", **make_share_axis([*curve["accuracy"], accuracy])
    )
    figure.update_layout(height=360, margin=MARGIN, showlegend=False)
    return figure
