"""A figure of WiSE-FT: accuracy on the way from one network to another."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from finetune_core.figures.axes import share_axis
from finetune_core.figures.style import LEGEND, MARGIN, VAL_COLOR, WARM


def mixing_curve(curve: Sequence[Mapping[str, Any]], chosen: float) -> go.Figure:
    """Validation accuracy against the mixing coefficient, the chosen one marked.

    Args:
        curve: ``coefficient, accuracy, loss`` of each point, from the start (0) to the fine-tuned network (1).
    """
    accuracies = [point["accuracy"] for point in curve]
    figure = go.Figure(layout={"height": 320, "margin": MARGIN, "legend": LEGEND})
    figure.add_scatter(
        x=[point["coefficient"] for point in curve],
        y=accuracies,
        customdata=[point["loss"] for point in curve],
        mode="lines+markers",
        name="validation",
        line={"color": VAL_COLOR, "width": 2},
        marker={"size": 8},
        hovertemplate="coefficient %{x}: accuracy %{y}, loss %{customdata:.3f}<extra></extra>",
    )
    figure.add_vline(
        chosen,
        line={"color": WARM, "width": 2, "dash": "dash"},
        annotation_text=f"chosen: {chosen:g}",
        annotation_position="bottom left" if chosen > 0.5 else "bottom right",
    )
    figure.update_xaxes(title_text="Mixing coefficient (0: start, 1: fine-tuned)", range=[-0.04, 1.04], dtick=0.1)
    figure.update_yaxes(title_text="Accuracy", **share_axis(accuracies))
    return figure
