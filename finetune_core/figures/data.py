"""Figures of a data set: class counts, map, linear probe by layer."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from finetune_core.figures.axes import choose_percent_format, make_count_axis, make_share_axis
from finetune_core.figures.style import (
    CLASS_COLORS,
    COLD,
    MARGIN,
    OTHER_COLOR,
    SPLIT_COLORS,
    SYMBOLS,
    WARM,
    format_label,
)


def plot_class_counts(counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> go.Figure:
    """Plot the number of images per class, stacked by split.

    Args:
        counts: split -> one number per class.
        classes: names of the classes.
    """
    figure = go.Figure()
    positions = list(range(len(classes)))
    names = {"train": "Training", "val": "Validation", "test": "Test"}
    for split, values in counts.items():
        figure.add_bar(
            x=positions, y=list(values), name=names[split], marker_color=SPLIT_COLORS[split]
        )
    ticks = [format_label(name) for name in classes]
    if len(classes) <= 60:
        figure.update_xaxes(tickmode="array", tickvals=positions, ticktext=ticks)
    maximum = max((sum(of_class) for of_class in zip(*counts.values(), strict=True)), default=0)
    figure.update_yaxes(title_text="Images", **make_count_axis(maximum))
    figure.update_layout(
        barmode="stack", height=320, margin=MARGIN, legend={"orientation": "h", "y": 1.12}
    )
    return figure


def plot_embedding_map(places: pd.DataFrame, by: str, names: Mapping[str, str]) -> go.Figure:
    """Plot one point per image, coloured by class or split.

    Each point carries the id of its image.

    Args:
        places: ``id, x, y`` and the column ``by``.
        by: the column that chooses the colour.
        names: value of that column -> its name, in the order of the legend.
    """
    figure = go.Figure()
    for number, (value, name) in enumerate(names.items()):
        rows = places[places[by] == value]
        if rows.empty:
            continue
        color = SPLIT_COLORS[value] if by == "split" else CLASS_COLORS[number % len(CLASS_COLORS)]
        symbol = SYMBOLS[number // len(CLASS_COLORS) % len(SYMBOLS)]
        figure.add_scattergl(
            x=rows["x"],
            y=rows["y"],
            mode="markers",
            name=format_label(name),
            customdata=rows[["id"]].to_numpy(),
            text=[format_label(sample, 60) for sample in rows["id"]],
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
            marker={
                "size": 6 if len(places) < 3000 else 4,
                "color": color,
                "symbol": symbol,
                "opacity": 0.8,
            },
        )
    hidden = {"showgrid": False, "zeroline": False, "showticklabels": False, "title": None}
    figure.update_xaxes(**hidden)
    figure.update_yaxes(**hidden)
    figure.update_layout(
        height=560, margin=MARGIN, legend={"itemsizing": "constant"}, dragmode="lasso"
    )
    return figure


def plot_probe_curve(probes: Sequence[Any], cut: str | None) -> go.Figure:
    """Plot the accuracy of a linear probe by stage, with its standard error.

    Stages that the suggestion trains are warm, all other stages cold.

    Args:
        probes: ``Probe`` of each stage, input to head.
        cut: the first stage that the suggestion trains. None if it names none.
    """
    names = [one.stage for one in probes]
    digits = choose_percent_format(one.accuracy for one in probes)
    labels = [format(one.accuracy, digits) for one in probes]
    frozen = names.index(cut) if cut in names else len(names)
    figure = go.Figure(
        go.Scatter(
            x=names,
            y=[one.accuracy for one in probes],
            error_y={
                "array": [one.error for one in probes],
                "thickness": 1.5,
                "color": OTHER_COLOR,
            },
            mode="lines+markers",
            line={"color": OTHER_COLOR, "width": 2},
            marker={
                "size": 14,
                "color": [COLD if index < frozen else WARM for index in range(len(names))],
            },
            text=labels,
            hovertemplate="%{x}: %{text}<extra></extra>",
        )
    )
    figure.add_scatter(
        x=names,
        y=[one.accuracy + one.error for one in probes],  # above the error bar
        mode="text",
        text=labels,
        textposition="top center",
        cliponaxis=False,
        hoverinfo="skip",
    )
    figure.update_xaxes(title_text="Stage, input to head", type="category")
    reach = [0.0, *(min(1.0, one.accuracy + one.error) for one in probes)]
    figure.update_yaxes(
        title_text="Validation accuracy of a linear probe", **make_share_axis(reach)
    )
    figure.update_layout(height=380, margin=MARGIN | {"t": 30}, showlegend=False)
    return figure
