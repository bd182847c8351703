"""Figures of advice before training: linear probes by stage, of several networks."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from finetune_core.evaluation.advice.ranking import Candidate, best_stages
from finetune_core.figures.axes import hover_percent, share_axis
from finetune_core.figures.style import LEGEND, MARGIN, RUN_COLORS, SYMBOLS, label

MOST = len(RUN_COLORS)  # networks
_APART = 0.06  # stages, so that intervals do not cover each other


def probes_by_stage(
    candidates: Sequence[Candidate], stages: Mapping[str, Sequence[str]]
) -> go.Figure:
    """Accuracy of the probe at every stage with its interval, one line per network, the best of them.

    Args:
        candidates: as they are ranked.
        stages: backbone -> its stages, input to head. Where all have the same ones, the axis names them; else it numbers them.
    """
    leaders = best_stages(candidates)[:MOST]
    digits = hover_percent(one.accuracy for one in candidates)
    figure = go.Figure()
    for number, leader in enumerate(leaders):
        by_stage = {one.stage: one for one in candidates if one.backbone == leader.backbone}
        own = [by_stage[stage] for stage in stages[leader.backbone]]
        color = RUN_COLORS[number]
        figure.add_scatter(
            x=[at + _APART * (number - (len(leaders) - 1) / 2) for at in range(len(own))],
            y=[one.accuracy for one in own],
            error_y={
                "array": [one.ci_high - one.accuracy for one in own],
                "arrayminus": [one.accuracy - one.ci_low for one in own],
                "thickness": 1.2,
                "width": 2,
                "color": color,
            },
            name=label(leader.backbone, 32),
            mode="lines+markers",
            line={"color": color, "width": 2},
            marker={"size": 8, "symbol": SYMBOLS[number]},
            text=[f"{label(one.stage)}: {one.accuracy:{digits}}" for one in own],
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        )
    longest = max((stages[one.backbone] for one in leaders), key=len, default=())
    same = len({tuple(stages[one.backbone]) for one in leaders}) == 1
    ticks = [label(name) if same else str(at + 1) for at, name in enumerate(longest)]
    figure.update_xaxes(
        title_text="Stage, input to head",
        tickmode="array",
        tickvals=list(range(len(ticks))),
        ticktext=ticks,
        zeroline=False,
    )
    reach = [end for one in candidates for end in (one.ci_low, one.ci_high)]
    figure.update_yaxes(title_text="Accuracy of the probe", **share_axis(reach))
    figure.update_layout(height=380, margin=MARGIN, legend=LEGEND)
    return figure
