"""Figure of a profile: stages as tiles coloured by their gain, above bars with intervals."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from finetune_core.figures.style import COLD, MARGIN, OTHER_COLOR, WARM, format_label
from finetune_core.formatting import format_points
from finetune_core.profiling.result import Profile, ProfileArm, arms_by_stage

# Light tiles with dark text are readable on light and on dark pages.
_COLD_TILE, _WARM_TILE = (207, 232, 247), (255, 157, 87)
_TEXT_COLORS = {"cold": "#0b3c5d", "warm": "#4a1a00"}


def plot_profile(profile: Profile) -> go.Figure:
    """Plot the gain of each stage over the linear probe, with its simultaneous 95 % interval.

    Ember means that the gain exceeds what other images and seeds explain. Ice blue means that
    nothing was measurable. Hatched bars stopped after the short round. Sets of stages and full
    fine-tuning follow the single stages.
    """
    arm_of_stage = arms_by_stage(profile)
    others = [arm for arm in profile.arms if arm.kind in ("stages", "full")]
    names = [*profile.stages, *(arm.title for arm in others)]
    arms = [*(arm_of_stage.get(stage) for stage in profile.stages), *others]
    places = [place for place, arm in enumerate(arms) if arm]
    tested = [arm for arm in arms if arm]
    figure = make_subplots(
        rows=2, cols=1, row_heights=[0.2, 0.8], shared_xaxes=True, vertical_spacing=0.04
    )
    max_gain = max((arm.gain.value for arm in tested if arm.has_gain), default=0.0)
    figure.add_bar(
        x=list(range(len(profile.stages))),
        y=[1] * len(profile.stages),
        width=0.94,
        marker={
            "color": [
                _mix_tile_color(arm_of_stage.get(stage), max_gain) for stage in profile.stages
            ],
            "line": {
                "color": [_get_line_color(arm_of_stage.get(stage)) for stage in profile.stages],
                "width": 1,
            },
        },
        text=[_format_tile(profile, stage, arm_of_stage.get(stage)) for stage in profile.stages],
        textfont={"color": [_get_text_color(arm_of_stage.get(stage)) for stage in profile.stages]},
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        hoverinfo="skip",
        row=1,
        col=1,
    )
    figure.add_bar(
        x=places,
        y=[100 * arm.gain.value for arm in tested],
        width=0.7,
        marker={
            "color": [_get_bar_color(arm) for arm in tested],
            "pattern": {"shape": ["/" if arm.kind == "short" else "" for arm in tested]},
        },
        error_y={
            "type": "data",
            "array": [100 * (arm.gain.high - arm.gain.value) for arm in tested],
            "arrayminus": [100 * (arm.gain.value - arm.gain.low) for arm in tested],
            "thickness": 1.4,
            "width": 4,
            "color": "#7d8590",
        },
        customdata=[[_format_hover(arm)] for arm in tested],
        hovertemplate="%{customdata[0]}<extra></extra>",
        row=2,
        col=1,
    )
    figure.update_xaxes(visible=False, row=1, col=1)
    figure.update_yaxes(visible=False, range=[-0.02, 1.02], fixedrange=True, row=1, col=1)
    figure.update_xaxes(
        tickmode="array",
        tickvals=list(range(len(names))),
        ticktext=[format_label(name) for name in names],
        automargin=True,
        range=[-0.6, len(names) - 0.4],
        row=2,
        col=1,
    )
    figure.update_yaxes(title_text="Gain over the probe (points)", zeroline=True, row=2, col=1)
    figure.update_layout(height=400, margin=MARGIN, showlegend=False, bargap=0)
    return figure


def describe_profile(profile: Profile) -> str:
    """Return the content of the figure as text, for screen readers."""
    parts = [
        f"{arm.title} {format_points(arm.gain.value)} ({format_points(arm.gain.low)} to "
        f"{format_points(arm.gain.high)})"
        for arm in profile.arms
    ]
    return f"Gain over the linear probe in points, 95 % interval: {'; '.join(parts)}"


def _mix_tile_color(arm: ProfileArm | None, max_gain: float) -> str:
    """Return a tile's colour, from ice blue to ember by its share of the largest gain."""
    share = arm.gain.value / max_gain if arm and arm.has_gain else 0.0
    share = 0.4 + 0.6 * share if share else 0.0
    mixed = [a + (b - a) * share for a, b in zip(_COLD_TILE, _WARM_TILE, strict=True)]
    return f"rgb({', '.join(f'{value:.0f}' for value in mixed)})"


def _get_line_color(arm: ProfileArm | None) -> str:
    return _get_bar_color(arm) if arm else OTHER_COLOR


def _get_text_color(arm: ProfileArm | None) -> str:
    return _TEXT_COLORS["warm" if arm and arm.has_gain else "cold"]


def _get_bar_color(arm: ProfileArm) -> str:
    return WARM if arm.has_gain else COLD


def _format_tile(profile: Profile, stage: str, arm: ProfileArm | None) -> str:
    """Return a stage's gain, with a tick if it is selected, so that colour is not the only sign.

    The names are on the axis below, because a tile has no space for them on a phone.
    """
    tick = "✓<br>" if profile.selected_arm and stage in profile.selected_arm.stages else ""
    gain = "–" if arm is None else f"{arm.gain.value * 100:+.1f}".replace("-", "−")
    return f"<b>{tick}{gain}</b>"


def _format_hover(arm: ProfileArm) -> str:
    short = ", short run" if arm.kind == "short" else ""
    low, high = format_points(arm.gain.low), format_points(arm.gain.high)
    return (
        f"{format_label(arm.title, 40)}{short}: {format_points(arm.gain.value)} points ({low} to "
        f"{high})"
    )
