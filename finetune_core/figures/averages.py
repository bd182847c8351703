"""A figure of WiSE-FT: accuracy on the way from one network to another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from finetune_core.figures.axes import share_axis
from finetune_core.figures.style import LEGEND, MARGIN, SYMBOLS, TEST_COLOR, VAL_COLOR, WARM, label
from finetune_core.formatting import accuracy_name


def mixing_curve(
    curve: Sequence[Mapping[str, Any]], chosen: float, shifted: Sequence[Mapping[str, Any]] = ()
) -> go.Figure:
    """Validation accuracy against the mixing coefficient, the chosen one marked; dotted, that on other data sets.

    Args:
        curve: ``coefficient, accuracy, loss`` of each point, from the start (0) to the fine-tuned network (1).
        shifted: ``data, images, curve`` of each other data set.
    """
    accuracies = [
        point["accuracy"] for one in ({"curve": curve}, *shifted) for point in one["curve"]
    ]
    figure = go.Figure(layout={"height": 320, "margin": MARGIN, "legend": LEGEND})
    _line(figure, curve, "validation", VAL_COLOR, "solid", "circle")
    for at, one in enumerate(shifted, start=1):
        _line(
            figure,
            one["curve"],
            f"shifted: {label(Path(one['data']).name)}",
            TEST_COLOR,
            "dot",
            SYMBOLS[at % len(SYMBOLS)],
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
    # Shifted images are no validation images: the legend names each curve's own.
    title = "Accuracy" if shifted else accuracy_name("val")
    figure.update_yaxes(title_text=title, **share_axis(accuracies))
    return figure


def _line(
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
