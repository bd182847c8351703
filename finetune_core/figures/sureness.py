"""Figures of how sure a network is: whether it is right as often as it says, and what leaving out the unsure brings."""

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from finetune_core.figures.style import BEST_COLOR, LEGEND, MARGIN, OTHER_COLOR, WARM


def reliability_diagram(bins: Mapping[str, pd.DataFrame]) -> go.Figure:
    """Accuracy against confidence, with how many images are how sure below.

    Args:
        bins: name -> ``confidence, accuracy, accuracy_low, accuracy_high, images`` of each bin; two at most, the first with intervals.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.75, 0.25], vertical_spacing=0.05)
    ideal = {"color": OTHER_COLOR, "dash": "dot"}
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", line=ideal, name="as sure as it is right", hoverinfo="skip", row=1, col=1
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
            hovertemplate="%{x:.1%} sure, %{y:.1%} right<br>%{customdata} images",
            row=1,
            col=1,
        )
        figure.add_bar(
            x=rows["confidence"],
            y=rows["images"],
            width=0.012,
            offset=-0.012 if symbol == "circle" else 0,
            marker_color=color,
            showlegend=False,
            hoverinfo="skip",
            row=2,
            col=1,
        )
    figure.update_xaxes(range=[-0.01, 1.01], tickformat=".0%")
    figure.update_xaxes(title_text="How sure", row=2, col=1)
    figure.update_yaxes(title_text="How often right", range=[-0.02, 1.03], tickformat=".0%", row=1, col=1)
    figure.update_yaxes(title_text="Images", rangemode="tozero", row=2, col=1)
    figure.update_layout(height=480, margin=MARGIN, legend=LEGEND, barmode="overlay")
    return figure


def coverage_figure(curve: pd.DataFrame, share: float, accuracy: float) -> go.Figure:
    """Accuracy among the images that are named, by their share; the choice is a point on it.

    Args:
        curve: ``coverage, accuracy, threshold``.
        share, accuracy: of the choice; NaN where nothing is named.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=curve["coverage"],
        y=curve["accuracy"],
        customdata=curve["threshold"],
        mode="lines+markers" if len(curve) < 30 else "lines",
        line={"color": BEST_COLOR, "width": 2},
        hovertemplate="named: %{x:.1%}<br>right: %{y:.1%}<br>at least %{customdata:.1%} sure<extra></extra>",
    )
    figure.add_scatter(
        x=[share], y=[accuracy], mode="markers", marker={"size": 14, "color": WARM, "symbol": "diamond"}, hoverinfo="skip"
    )
    figure.update_xaxes(title_text="Images that are named", range=[-0.01, 1.01], tickformat=".0%")
    figure.update_yaxes(title_text="Right among those", tickformat=".0%")
    figure.update_layout(height=360, margin=MARGIN, showlegend=False)
    return figure
