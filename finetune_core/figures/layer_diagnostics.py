"""Figures of what training changed by stage, from input to head.

A run has the colour and symbol of its arm. Hollow symbols are frozen stages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from finetune_core.evaluation.comparison.layer_diagnostics import Layers
from finetune_core.figures.axes import PERCENT, choose_percent_format, make_share_axis
from finetune_core.figures.comparison import RUN_SYMBOLS
from finetune_core.figures.style import (
    BEST_COLOR,
    LEGEND,
    MARGIN,
    RUN_COLORS,
    escape_plotly,
    format_label,
)
from finetune_core.inspection.learned import Probe


@dataclass(frozen=True)
class Measure:
    """One number per stage.

    Attributes:
        field: attribute of ``StageChange``.
        title: title of the figure.
        axis: title of the y axis.
        percent: whether the number is a share. Otherwise it has no unit.
        head: whether the head is shown. It is new in most runs.
        help: explanation of the number.
    """

    field: str
    title: str
    axis: str
    percent: bool
    head: bool
    help: str


MEASURES = (
    Measure(
        "change",
        "Relative update size",
        "Relative update size",
        True,
        False,
        "How far training moved the weights of a stage: the norm of the change relative to "
        "that of the initial weights. 0: unchanged.",
    ),
    Measure(
        "likeness",
        "Feature similarity before and after (CKA)",
        "Linear CKA",
        False,
        False,
        "Linear CKA (Kornblith et al. 2019) between a stage's features of the same validation "
        "images before and after training. 1: the same, but for rotation and scale; 0: "
        "unrelated. A frozen stage behind no trained one stays at 1.",
    ),
    Measure(
        "gradient_share",
        "Gradient share by stage",
        "Share of the gradient",
        True,
        True,
        "Each stage's part of the squared gradient norm, as recorded by the run: mean over "
        "its epochs. Frozen stages have none.",
    ),
    Measure(
        "pull",
        "Relative gradient norm, all stages unfrozen",
        "Relative gradient norm",
        True,
        False,
        "Norm of the loss gradient on training images at the trained network, relative to "
        "the norm of the weights (Auto-RGN, Lee et al. 2023). "
        "High: training would change this stage most. It does not say whether that helps on "
        "new images, so it plays no part in the advice on which stage to thaw next.",
    ),
)


def plot_by_stage(
    measure: Measure, runs: Mapping[str, Layers], places: Mapping[str, int]
) -> go.Figure:
    """Plot a measure by stage, one line per run.

    Args:
        measure: the measure.
        runs: title -> layer diagnostics. All runs have the same stages.
        places: title -> index of its arm among all arms.
    """
    figure = go.Figure()
    for title, layers in runs.items():
        stages = layers.stages if measure.head else layers.stages[:-1]
        symbol = RUN_SYMBOLS[places[title] % len(RUN_SYMBOLS)]
        points = [
            (index, getattr(stage, measure.field), stage.trains)
            for index, stage in enumerate(stages)
        ]
        points = [one for one in points if one[1] is not None]
        figure.add_scatter(
            x=[index for index, _, _ in points],
            y=[value for _, value, _ in points],
            name=escape_plotly(title),
            mode="lines+markers",
            line={"color": RUN_COLORS[places[title] % len(RUN_COLORS)], "width": 2},
            marker={
                "size": 10,
                "symbol": [symbol if trains else f"{symbol}-open" for _, _, trains in points],
            },
            text=["trains" if trains else "frozen" for _, _, trains in points],
            hovertemplate="%{y}, %{text}",
        )
    names = [stage.name for stage in next(iter(runs.values())).stages]
    _set_stage_axis(figure, names if measure.head else names[:-1])
    values = [value for trace in figure.data for value in trace.y]
    axis_format = (
        {"tickformat": PERCENT, "hoverformat": choose_percent_format(values)}
        if measure.percent
        else {"hoverformat": ".3f"}
    )
    figure.update_yaxes(title_text=measure.axis, rangemode="tozero", **axis_format)
    figure.update_layout(height=330, margin=MARGIN, legend=LEGEND, showlegend=len(runs) > 1)
    return figure


def plot_probe_profile(probes: Sequence[Probe], stages: Sequence[str]) -> go.Figure:
    """Plot the accuracy of a linear probe by stage before training, with its standard error.

    Args:
        probes: the probes.
        stages: names of all stages, input to head.
    """
    positions = [stages.index(one.stage) for one in probes]
    figure = go.Figure(
        go.Scatter(
            x=positions,
            y=[one.accuracy for one in probes],
            error_y={"type": "data", "array": [one.error for one in probes], "thickness": 1.5},
            mode="lines+markers",
            line={"color": BEST_COLOR, "width": 2},
            marker={"size": 10},
            hovertemplate="%{y}<extra></extra>",
        )
    )
    _set_stage_axis(figure, stages[:-1])
    reach = [end for one in probes for end in (one.accuracy - one.error, one.accuracy + one.error)]
    figure.update_yaxes(title_text="Validation accuracy", **make_share_axis(np.clip(reach, 0, 1)))
    figure.update_layout(height=330, margin=MARGIN, showlegend=False)
    return figure


def _set_stage_axis(figure: go.Figure, names: Sequence[str]) -> None:
    positions = list(range(len(names)))
    ticks = {
        "tickmode": "array",
        "tickvals": positions,
        "ticktext": [format_label(name, 12) for name in names],
    }
    figure.update_xaxes(range=[-0.4, len(names) - 0.6], **ticks)
