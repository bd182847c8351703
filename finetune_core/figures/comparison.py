"""Figures of a comparison. An arm keeps its colour and symbol in all of them."""

from collections.abc import Callable, Hashable, Sequence
from math import ceil, floor, log10
from typing import Any, Literal

import plotly.graph_objects as go

from finetune_core.evaluation.comparison.arms import Arm, sort_by_score
from finetune_core.evaluation.comparison.costs import Cost, timeline
from finetune_core.evaluation.comparison.strategies import Interval
from finetune_core.figures.axes import make_count_axis, make_share_axis
from finetune_core.figures.style import LEGEND, MARGIN, OTHER_COLOR, RUN_COLORS, escape_plotly
from finetune_core.formatting import accuracy_name
from finetune_core.training.strategies.catalogue import count_epochs

Kind = Literal["loss", "accuracy"]
Axis = Literal["epoch", "seconds"]
CostName = Literal["seconds", "trainable_parameters", "memory_bytes", "device_bytes", "disk_bytes"]

# cost -> (label of its button, title of its axis, unit)
COSTS: dict[CostName, tuple[str, str, float]] = {
    "seconds": ("Time", "Training time", 1.0),
    "trainable_parameters": ("Trainable parameters", "Trainable parameters, millions", 1e6),
    "memory_bytes": ("Memory", "Memory of a run, MB", 1e6),
    "device_bytes": ("GPU memory", "GPU memory of a run, MB", 1e6),
    "disk_bytes": ("Size on disk", "Size of the best checkpoint, MB", 1e6),
}
RUN_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
_DASHES = ("solid", "dash", "dot", "longdashdot")
_ROUND_SECONDS = (1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10_800, 36_000, 108_000, 360_000)
_LOG_RATIO = 20.0  # of the largest to the smallest value, above which axes are logarithmic


def plot_accuracies(arms: Sequence[Arm], split: str) -> go.Figure:
    """Plot the metric of each arm with its interval, best first, and a dot for each seed."""
    figure, measure = go.Figure(), arms[0].measure
    scores = [(arm.score, [member.score for member in arm.members]) for arm in arms]
    ordered = sort_by_score(arms)
    lines = {index: line for line, (index, _) in enumerate(ordered)}
    for index, arm in enumerate(arms):
        values = [member.score.value for member in arm.members]
        figure.add_scatter(
            x=values,
            y=[lines[index]] * len(values),
            mode="markers",
            marker={"color": _get_color(index), "size": 7, "opacity": 0.45, "symbol": "circle"},
            hovertemplate="%{text}: %{x}<extra></extra>",
            text=[f"seed {member.run.config.seed}" for member in arm.members],
        )
        figure.add_scatter(
            x=[arm.score.value],
            y=[lines[index]],
            mode="markers",
            marker=_make_marker(index),
            error_x=_make_error_bars(arm.score),
            hovertemplate=f"{escape_plotly(arm.title)}: %{{x}}<extra></extra>",
        )
    ticks = {
        "tickmode": "array",
        "tickvals": list(range(len(arms))),
        "ticktext": [_wrap_title(arm.title) for _, arm in ordered],
    }
    figure.update_yaxes(range=[len(arms) - 0.5, -0.5], showgrid=False, zeroline=False, **ticks)
    figure.update_xaxes(
        title_text=measure.title_on(split),
        **(make_share_axis(_collect_bounds(scores)) if measure.share else {"hoverformat": ".3f"}),
    )
    figure.update_layout(height=110 + 48 * len(arms), margin=MARGIN, showlegend=False)
    return figure


def plot_learning_curves(kind: Kind, axis: Axis, arms: Sequence[Arm]) -> go.Figure:
    """Plot validation loss or accuracy of every run with epochs.

    The x axis shows epochs, or seconds since the start of the run.
    """
    figure = go.Figure()
    for index, arm in enumerate(arms):
        for number, member in enumerate(arm.members):
            rows = timeline(member.run)
            if not rows:  # a head fitted without epochs
                continue
            figure.add_scatter(
                x=[row[axis] for row in rows],
                y=[row[f"val_{kind}"] for row in rows],
                name=escape_plotly(arm.title),
                legendgroup=str(index),
                showlegend=number == 0,
                mode="lines+markers",
                line={
                    "color": _get_color(index),
                    "width": 2,
                    "dash": _DASHES[index % len(_DASHES)],
                },
                marker={"size": 5, "symbol": RUN_SYMBOLS[index % len(RUN_SYMBOLS)]},
                hovertemplate=f"seed {member.run.config.seed}, %{{x:.3~g}}: "
                f"%{{y}}<extra>%{{fullData.name}}</extra>",
            )
    if axis == "seconds":
        ends = [trace.x[-1] for trace in figure.data]
        figure.update_xaxes(
            title_text="Time since the run began", **_make_cost_axis("seconds", ends, figure)
        )
    else:
        figure.update_xaxes(
            title_text="Epoch", **make_count_axis(max(_collect_values(figure, "x"), default=1))
        )
    axis_format = (
        make_share_axis(_collect_values(figure, "y"))
        if kind == "accuracy"
        else {"hoverformat": ".3f"}
    )
    figure.update_yaxes(title_text=f"Validation {kind}", **axis_format)
    figure.update_layout(height=360, margin=MARGIN, legend=LEGEND)
    return figure


def list_costs(arms: Sequence[Arm]) -> tuple[list[CostName], str]:
    """Return the costs to plot accuracy against, and why memory is not among them.

    Memory is that of the device that trained. It is offered only if all runs were trained on the
    same kind of device, and was measured for all of them if that is a GPU. A GPU's memory cannot be
    compared with that of a processor, which holds the whole run.

    Returns:
        The names of the costs, and the reason. The reason is empty if memory is offered.
    """
    devices = sorted({kind for arm in arms for kind in arm.cost.device.split(", ")})
    is_measured = all(arm.cost.device_bytes is not None for arm in arms)
    memory: CostName | None = (
        "memory_bytes"
        if devices == ["cpu"]
        else "device_bytes"
        if len(devices) == 1 and is_measured
        else None
    )
    reason = ""
    if len(devices) > 1:
        reason = (
            "Memory is not compared: these runs were trained on different devices "
            f"({', '.join(devices)})."
        )
    elif memory is None:
        reason = "Memory is not compared: the GPU's was not measured for all of these runs."
    return [
        name for name in COSTS if name == memory or name not in ("memory_bytes", "device_bytes")
    ], reason


def plot_pareto_front(measure: CostName, arms: Sequence[Arm], split: str) -> go.Figure:
    """Plot accuracy against a cost, with the Pareto front.

    If the cost is time, a hollow marker shows the same run without its cache.
    """
    _, title, unit = COSTS[measure]
    costs = [getattr(arm.cost, measure) / unit for arm in arms]
    figure = go.Figure()
    front = find_pareto_front(
        [(cost, arm.accuracy.value) for cost, arm in zip(costs, arms, strict=True)]
    )
    figure.add_scatter(
        x=[costs[index] for index in front],
        y=[arms[index].accuracy.value for index in front],
        mode="lines",
        line={"color": OTHER_COLOR, "width": 2, "dash": "dot", "shape": "hv"},
        name="Pareto front",
        hoverinfo="skip",
    )
    for index, (arm, cost) in enumerate(zip(arms, costs, strict=True)):
        uncached = _get_uncached_seconds(arm.cost) if measure == "seconds" else None
        if uncached is not None:
            figure.add_scatter(
                x=[cost, uncached],
                y=[arm.accuracy.value] * 2,
                mode="lines+markers",
                line={"color": _get_color(index), "width": 1},
                marker=_make_marker(index)
                | {"symbol": ["circle", f"{_get_symbol(index)}-open"], "size": [0, 13]},
                hovertemplate="without the cache: %{x:.3~g}<extra>%{fullData.name}</extra>",
                name=escape_plotly(arm.title),
                legendgroup=str(index),
                showlegend=False,
            )
        figure.add_scatter(
            x=[cost],
            y=[arm.accuracy.value],
            mode="markers",
            marker=_make_marker(index),
            error_y=_make_error_bars(arm.accuracy),
            name=escape_plotly(arm.title),
            legendgroup=str(index),
            hovertemplate="%{y} for %{x:.3~g}<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title_text=title, **_make_cost_axis(measure, costs, figure))
    figure.update_yaxes(
        title_text=accuracy_name(split), **make_share_axis(_collect_accuracy_bounds(arms))
    )
    figure.update_layout(height=420, margin=MARGIN, legend=LEGEND)
    return figure


def plot_shift(arms: Sequence[Arm], shifted: Sequence[Interval], title: str) -> go.Figure:
    """Plot the score on shifted images against the score on the run's own, with intervals.

    Arms on the dotted line lose nothing.

    Args:
        arms: the arms with their scores on their own images.
        shifted: score of each arm on the shifted images.
        title: name of the shifted images.
    """
    figure, measure = go.Figure(), arms[0].measure
    ends = [end for one in (*(arm.score for arm in arms), *shifted) for end in (one.low, one.high)]
    line = [min(ends), max(ends)]
    figure.add_scatter(
        x=line,
        y=line,
        mode="lines",
        line={"color": OTHER_COLOR, "width": 2, "dash": "dot"},
        name="No drop",
        hoverinfo="skip",
    )
    for index, (arm, other) in enumerate(zip(arms, shifted, strict=True)):
        figure.add_scatter(
            x=[arm.score.value],
            y=[other.value],
            mode="markers",
            marker=_make_marker(index),
            error_x=_make_error_bars(arm.score),
            error_y=_make_error_bars(other),
            name=escape_plotly(arm.title),
            hovertemplate="%{x} in-distribution, %{y} shifted<extra>%{fullData.name}</extra>",
        )
    axis = make_share_axis(ends) if measure.share else {"hoverformat": ".3f"}
    figure.update_xaxes(title_text=f"{measure.title}, in-distribution", **axis)
    figure.update_yaxes(title_text=f"{measure.title}, {escape_plotly(title)}", **axis)
    figure.update_layout(height=460, margin=MARGIN, legend=LEGEND)
    return figure


def _make_cost_axis(
    measure: CostName, compared: Sequence[float], figure: go.Figure
) -> dict[str, Any]:
    """Return a linear axis from 0, or a logarithmic one if the costs differ much.

    A logarithmic axis has few round ticks, which are written as durations for seconds.
    """
    values = _collect_values(figure, "x")
    low, high = min(values), max(values)
    if low <= 0 or max(compared) / min(compared) <= _LOG_RATIO:
        return {"rangemode": "tozero", "ticksuffix": " s" if measure == "seconds" else ""}
    if measure == "seconds":
        ticks = [seconds for seconds in _ROUND_SECONDS if low / 2 <= seconds <= high * 2]
        return {
            "type": "log",
            "tickmode": "array",
            "tickvals": ticks,
            "ticktext": [_format_duration(one) for one in ticks],
        }
    first, last = floor(log10(low)), ceil(log10(high))
    values = [
        digit * 10.0**power
        for power in range(first, last + 1)
        for digit in ((1, 3) if last - first < 4 else (1,))
    ]
    return {
        "type": "log",
        "tickmode": "array",
        "tickvals": values,
        "ticktext": [f"{value:,g}" for value in values],
    }


def _format_duration(seconds: int) -> str:
    for unit, word in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds // unit} {word}"
    return f"{seconds} s"


def plot_depth(arms: Sequence[Arm], split: str) -> go.Figure | None:
    """Plot accuracy against the number of trained stages.

    There is one line per backbone and training fraction. Unfinished arms and arms without epochs
    are left out, because they say nothing about depth. Returns None if all arms train equally many
    stages.
    """
    comparable = [
        arm for arm in arms if arm.depth.whole and count_epochs(arm.config) and not arm.unfinished
    ]
    if len({arm.depth.trained_stages for arm in comparable}) < 2:
        return None
    depths = sorted({arm.depth.trained_stages for arm in comparable})
    figure = _plot_lines(
        arms,
        comparable,
        # Evenly spaced, because the names need space.
        lambda arm: depths.index(arm.depth.trained_stages),
        lambda arm: (arm.config.backbone, arm.config.train_fraction),
        split,
    )
    names = {arm.depth.trained_stages: arm.depth.first_stage for arm in comparable}
    one = len({arm.config.backbone for arm in comparable}) == 1  # backbones differ in their stages
    labels = [
        f"{escape_plotly(names[count])}<br>({count})" if one else str(count) for count in depths
    ]
    figure.update_xaxes(
        title_text="First stage that trains (how many train)" if one else "Stages that train",
        tickmode="array",
        tickvals=list(range(len(depths))),
        ticktext=labels,
        zeroline=False,
        tickangle=0,
    )
    return figure


def plot_training_size(arms: Sequence[Arm], split: str) -> go.Figure | None:
    """Plot accuracy against the number of training images.

    There is one line per strategy and backbone. Unfinished arms are left out, because they say
    nothing about the effect of data. Returns None if all arms have equally many images.
    """
    ended = [arm for arm in arms if not arm.unfinished]
    if len({_count_training_images(arm) for arm in ended}) < 2:
        return None
    figure = _plot_lines(
        arms,
        ended,
        _count_training_images,
        lambda arm: (arm.config.strategy, arm.config.cut, arm.config.backbone),
        split,
    )
    figure.update_xaxes(
        title_text="Training images", **make_count_axis(max(_collect_values(figure, "x")))
    )
    return figure


def find_pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the Pareto-optimal (cost, accuracy) points, the cheapest first."""
    best, front = -1.0, []
    for index in sorted(
        range(len(points)), key=lambda index: (points[index][0], -points[index][1])
    ):
        if points[index][1] > best:
            best = points[index][1]
            front.append(index)
    return front


def _plot_lines(
    arms: Sequence[Arm],
    plotted: Sequence[Arm],
    get_x: Callable[[Arm], float],
    get_group: Callable[[Arm], Hashable],
    split: str,
) -> go.Figure:
    figure = go.Figure()
    for key in dict.fromkeys(get_group(arm) for arm in plotted):
        line = sorted((arm for arm in plotted if get_group(arm) == key), key=get_x)
        indices = [arms.index(arm) for arm in line]
        figure.add_scatter(
            x=[get_x(arm) for arm in line],
            y=[arm.accuracy.value for arm in line],
            error_y={
                "type": "data",
                "array": [arm.accuracy.high - arm.accuracy.value for arm in line],
                "arrayminus": [arm.accuracy.value - arm.accuracy.low for arm in line],
                "thickness": 1.5,
                "color": OTHER_COLOR,
            },
            mode="lines+markers",
            line={"color": OTHER_COLOR, "width": 2},
            marker={
                "color": [_get_color(n) for n in indices],
                "symbol": [_get_symbol(n) for n in indices],
                "size": 13,
                "opacity": 1,
            },
            text=[escape_plotly(arm.title) for arm in line],
            hovertemplate="%{text}: %{y}<extra></extra>",
        )
    figure.update_yaxes(
        title_text=accuracy_name(split), **make_share_axis(_collect_accuracy_bounds(plotted))
    )
    figure.update_layout(height=360, margin=MARGIN, showlegend=False)
    return figure


def _collect_values(figure: go.Figure, axis: Literal["x", "y"]) -> list[float]:
    return [value for trace in figure.data for value in trace[axis]]


def _collect_accuracy_bounds(arms: Sequence[Arm]) -> list[float]:
    """Return the ends of all intervals and the seeds' values, to choose an axis range."""
    return _collect_bounds(
        [(arm.accuracy, [member.accuracy for member in arm.members]) for arm in arms]
    )


def _collect_bounds(scores: Sequence[tuple[Interval, Sequence[Interval]]]) -> list[float]:
    return [
        end
        for whole, seeds in scores
        for end in (whole.low, whole.high, *(seed.value for seed in seeds))
    ]


def _count_training_images(arm: Arm) -> int:
    return int(arm.members[0].run.started["counts"]["train"])


def _get_uncached_seconds(cost: Cost) -> float | None:
    return (
        cost.uncached_seconds
        if cost.uncached_seconds and cost.uncached_seconds > cost.seconds
        else None
    )


def _make_error_bars(interval: Interval) -> dict[str, Any]:
    return {
        "type": "data",
        "array": [interval.high - interval.value],
        "arrayminus": [interval.value - interval.low],
        "thickness": 1.5,
    }


def _get_color(index: int) -> str:
    return RUN_COLORS[index % len(RUN_COLORS)]


def _get_symbol(index: int) -> str:
    return RUN_SYMBOLS[index % len(RUN_SYMBOLS)]


def _make_marker(index: int) -> dict[str, Any]:
    return {"color": _get_color(index), "size": 13, "symbol": _get_symbol(index)}


def _wrap_title(title: str) -> str:
    return "<br>".join(escape_plotly(part) for part in title.split(" · "))
