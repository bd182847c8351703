"""Figures of backbone advice: linear probes by stage, for several networks."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from finetune_core.evaluation.advice.ranking import Candidate, best_stages
from finetune_core.figures.axes import choose_percent_format, make_share_axis
from finetune_core.figures.style import LEGEND, MARGIN, RUN_COLORS, SYMBOLS, format_label

MOST = len(RUN_COLORS)  # networks
_OFFSET = 0.06  # in stages, between networks, so that intervals do not overlap


def plot_probes_by_stage(
    candidates: Sequence[Candidate], stages: Mapping[str, Sequence[str]]
) -> go.Figure:
    """Plot probe accuracy at every stage with its interval, one line per network.

    Only the ``MOST`` best networks are drawn.

    Args:
        candidates: in the order of their ranking.
        stages: backbone -> names of its stages, input to head. If all networks have the same
            stages, the axis shows their names, otherwise numbers.
    """
    leaders = best_stages(candidates)[:MOST]
    digits = choose_percent_format(one.accuracy for one in candidates)
    figure = go.Figure()
    for number, leader in enumerate(leaders):
        by_stage = {one.stage: one for one in candidates if one.backbone == leader.backbone}
        probes = [by_stage[stage] for stage in stages[leader.backbone]]
        color = RUN_COLORS[number]
        figure.add_scatter(
            x=[index + _OFFSET * (number - (len(leaders) - 1) / 2) for index in range(len(probes))],
            y=[one.accuracy for one in probes],
            error_y={
                "array": [one.ci_high - one.accuracy for one in probes],
                "arrayminus": [one.accuracy - one.ci_low for one in probes],
                "thickness": 1.2,
                "width": 2,
                "color": color,
            },
            name=format_label(leader.backbone, 32),
            mode="lines+markers",
            line={"color": color, "width": 2},
            marker={"size": 8, "symbol": SYMBOLS[number]},
            text=[f"{format_label(one.stage)}: {one.accuracy:{digits}}" for one in probes],
            hovertemplate="%{text}<extra>%{fullData.name}</extra>",
        )
    longest = max((stages[one.backbone] for one in leaders), key=len, default=())
    same = len({tuple(stages[one.backbone]) for one in leaders}) == 1
    ticks = [format_label(name) if same else str(index + 1) for index, name in enumerate(longest)]
    figure.update_xaxes(
        title_text="Stage, input to head",
        tickmode="array",
        tickvals=list(range(len(ticks))),
        ticktext=ticks,
        zeroline=False,
    )
    reach = [end for one in candidates for end in (one.ci_low, one.ci_high)]
    figure.update_yaxes(title_text="Accuracy of the probe", **make_share_axis(reach))
    figure.update_layout(height=380, margin=MARGIN, legend=LEGEND)
    return figure
