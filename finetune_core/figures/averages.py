"""Figure of WiSE-FT: accuracy between two networks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from finetune_core.figures.axes import make_share_axis
from finetune_core.figures.style import (
    LEGEND,
    MARGIN,
    SYMBOLS,
    TEST_COLOR,
    VAL_COLOR,
    WARM,
    format_label,
)
from finetune_core.formatting import accuracy_name


def plot_mixing_curve(
    curve: Sequence[Mapping[str, Any]], chosen: float, shifted: Sequence[Mapping[str, Any]] = ()
) -> go.Figure:
    """Plot validation accuracy against the mixing coefficient and mark the chosen one.

    Curves of other data sets are dotted.

    Args:
        curve: ``coefficient, accuracy, loss`` of each point, from the initial network (0) to the
            fine-tuned network (1).
        chosen: the chosen coefficient.
        shifted: ``data, images, curve`` of each other data set.
    """
    accuracies = [
        point["accuracy"] for one in ({"curve": curve}, *shifted) for point in one["curve"]
    ]
    figure = go.Figure(layout={"height": 320, "margin": MARGIN, "legend": LEGEND})
    _add_curve(figure, curve, "validation", VAL_COLOR, "solid", "circle")
    for index, one in enumerate(shifted, start=1):
        _add_curve(
            figure,
            one["curve"],
            f"shifted: {format_label(Path(one['data']).name)}",
            TEST_COLOR,
            "dot",
            SYMBOLS[index % len(SYMBOLS)],
        )
    figure.add_vline(
        chosen,
        line={"color": WARM, "width": 2, "dash": "dash"},
        annotation_text=f"chosen: {chosen:g}",
        annotation_position="bottom left" if chosen > 0.5 else "bottom right",
    )
    figure.update_xaxes(
        title_text="Mixing coefficient (0: start, 1: fine-tuned)", range=[-0.04, 1.04], dtick=0.1
    )
    # Shifted images are not validation images, so the legend names the images of each curve.
    title = "Accuracy" if shifted else accuracy_name("val")
    figure.update_yaxes(title_text=title, **make_share_axis(accuracies))
    return figure


def _add_curve(
    figure: go.Figure,
    curve: Sequence[Mapping[str, Any]],
    name: str,
    color: str,
    dash: str,
    symbol: str,
) -> None:
    figure.add_scatter(
        x=[point["coefficient"] for point in curve],
        y=[point["accuracy"] for point in curve],
        customdata=[point["loss"] for point in curve],
        mode="lines+markers",
        name=name,
        line={"color": color, "width": 2, "dash": dash},
        marker={"size": 8, "symbol": symbol},
        hovertemplate="coefficient %{x}: accuracy %{y}, loss %{customdata:.3f}<extra></extra>",
    )
