"""Figures of a comparison: an arm keeps its colour and its symbol in all of them."""

from collections.abc import Callable, Hashable, Sequence
from math import ceil, floor, log10
from typing import Any, Literal

import plotly.graph_objects as go

from finetune_core.evaluation.comparison.arms import Arm, best_first
from finetune_core.evaluation.comparison.costs import Cost, timeline
from finetune_core.evaluation.comparison.strategies import Interval
from finetune_core.figures.axes import share_axis, whole_axis
from finetune_core.figures.style import LEGEND, MARGIN, OTHER_COLOR, RUN_COLORS, escaped
from finetune_core.formatting import accuracy_name
from finetune_core.training.strategies import epochs_of

Kind = Literal["loss", "accuracy"]
Axis = Literal["epoch", "seconds"]
CostName = Literal["seconds", "trainable_parameters", "memory_bytes", "device_bytes", "disk_bytes"]

# cost -> (what a button calls it, the axis, what a value of 1 is divided by)
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
_WIDE = 20.0  # times the smallest value: from there on a logarithmic axis


def accuracies(arms: Sequence[Arm], split: str) -> go.Figure:
    """Draw one line per arm, the best first: the metric with its interval, a dot for each seed."""
    figure, measure = go.Figure(), arms[0].measure
    scores = [(arm.score, [member.score for member in arm.members]) for arm in arms]
    ordered = best_first(arms)
    lines = {at: line for line, (at, _) in enumerate(ordered)}
    for at, arm in enumerate(arms):
        values = [member.score.value for member in arm.members]
        figure.add_scatter(
            x=values,
            y=[lines[at]] * len(values),
            mode="markers",
            marker={"color": _color(at), "size": 7, "opacity": 0.45, "symbol": "circle"},
            hovertemplate="%{text}: %{x}<extra></extra>",
            text=[f"seed {member.run.config.seed}" for member in arm.members],
        )
        figure.add_scatter(
            x=[arm.score.value],
            y=[lines[at]],
            mode="markers",
            marker=_marker(at),
            error_x=_error(arm.score),
            hovertemplate=f"{escaped(arm.title)}: %{{x}}<extra></extra>",
        )
    ticks = {
        "tickmode": "array",
        "tickvals": list(range(len(arms))),
        "ticktext": [_wrapped(arm.title) for _, arm in ordered],
    }
    figure.update_yaxes(range=[len(arms) - 0.5, -0.5], showgrid=False, zeroline=False, **ticks)
    figure.update_xaxes(
        title_text=measure.title_on(split),
        **(share_axis(_ends(scores)) if measure.share else {"hoverformat": ".3f"}),
    )
    figure.update_layout(height=110 + 48 * len(arms), margin=MARGIN, showlegend=False)
    return figure


def learning_curves(kind: Kind, axis: Axis, arms: Sequence[Arm]) -> go.Figure:
    """Validation loss or accuracy of every run with epochs on shared axes, over epochs or over seconds since the run began."""
    figure = go.Figure()
    for at, arm in enumerate(arms):
        for number, member in enumerate(arm.members):
            rows = timeline(member.run)
            if not rows:  # its head was fitted without epochs
                continue
            figure.add_scatter(
                x=[row[axis] for row in rows],
                y=[row[f"val_{kind}"] for row in rows],
                name=escaped(arm.title),
                legendgroup=str(at),
                showlegend=number == 0,
                mode="lines+markers",
                line={"color": _color(at), "width": 2, "dash": _DASHES[at % len(_DASHES)]},
                marker={"size": 5, "symbol": RUN_SYMBOLS[at % len(RUN_SYMBOLS)]},
                hovertemplate=f"seed {member.run.config.seed}, %{{x:.3~g}}: %{{y}}<extra>%{{fullData.name}}</extra>",
            )
    if axis == "seconds":
        ends = [trace.x[-1] for trace in figure.data]
        figure.update_xaxes(
            title_text="Time since the run began", **_cost_axis("seconds", ends, figure)
        )
    else:
        figure.update_xaxes(title_text="Epoch", **whole_axis(max(_drawn(figure, "x"), default=1)))
    axis_format = share_axis(_drawn(figure, "y")) if kind == "accuracy" else {"hoverformat": ".3f"}
    figure.update_yaxes(title_text=f"Validation {kind}", **axis_format)
    figure.update_layout(height=360, margin=MARGIN, legend=LEGEND)
    return figure


def offered_costs(arms: Sequence[Arm]) -> tuple[list[CostName], str]:
    """What accuracy can be drawn against; and, in words, why not against memory, where it cannot.

    Memory is that of the device that trained: one axis would mix a GPU's with a processor's, where all of a run lies.
    """
    kinds = sorted({kind for arm in arms for kind in arm.cost.device.split(", ")})
    measured = all(arm.cost.device_bytes is not None for arm in arms)
    memory: CostName | None = (
        "memory_bytes"
        if kinds == ["cpu"]
        else "device_bytes"
        if len(kinds) == 1 and measured
        else None
    )
    reason = ""
    if len(kinds) > 1:
        reason = f"Memory is not compared: these runs were trained on different devices ({', '.join(kinds)})."
    elif memory is None:
        reason = "Memory is not compared: the GPU's was not measured for all of these runs."
    return [
        name for name in COSTS if name == memory or name not in ("memory_bytes", "device_bytes")
    ], reason


def pareto(measure: CostName, arms: Sequence[Arm], split: str) -> go.Figure:
    """Accuracy against a cost, with the line of those that nothing beats on both. With time, a hollow marker is the same run
    without its cache."""
    _, title, unit = COSTS[measure]
    costs = [getattr(arm.cost, measure) / unit for arm in arms]
    figure = go.Figure()
    front = frontier([(cost, arm.accuracy.value) for cost, arm in zip(costs, arms, strict=True)])
    figure.add_scatter(
        x=[costs[at] for at in front],
        y=[arms[at].accuracy.value for at in front],
        mode="lines",
        line={"color": OTHER_COLOR, "width": 2, "dash": "dot", "shape": "hv"},
        name="Pareto front",
        hoverinfo="skip",
    )
    for at, (arm, cost) in enumerate(zip(arms, costs, strict=True)):
        uncached = _uncached(arm.cost) if measure == "seconds" else None
        if uncached is not None:
            figure.add_scatter(
                x=[cost, uncached],
                y=[arm.accuracy.value] * 2,
                mode="lines+markers",
                line={"color": _color(at), "width": 1},
                marker=_marker(at) | {"symbol": ["circle", f"{_symbol(at)}-open"], "size": [0, 13]},
                hovertemplate="without the cache: %{x:.3~g}<extra>%{fullData.name}</extra>",
                name=escaped(arm.title),
                legendgroup=str(at),
                showlegend=False,
            )
        figure.add_scatter(
            x=[cost],
            y=[arm.accuracy.value],
            mode="markers",
            marker=_marker(at),
            error_y=_error(arm.accuracy),
            name=escaped(arm.title),
            legendgroup=str(at),
            hovertemplate="%{y} for %{x:.3~g}<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(title_text=title, **_cost_axis(measure, costs, figure))
    figure.update_yaxes(title_text=accuracy_name(split), **share_axis(_reach(arms)))
    figure.update_layout(height=420, margin=MARGIN, legend=LEGEND)
    return figure


def against_shifted(arms: Sequence[Arm], shifted: Sequence[Interval], title: str) -> go.Figure:
    """The score of each arm on its own images against that on other ones, both with intervals. On the dotted line nothing is lost.

    Args:
        shifted: of each arm. title: what the other images are.
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
    for at, (arm, other) in enumerate(zip(arms, shifted, strict=True)):
        figure.add_scatter(
            x=[arm.score.value],
            y=[other.value],
            mode="markers",
            marker=_marker(at),
            error_x=_error(arm.score),
            error_y=_error(other),
            name=escaped(arm.title),
            hovertemplate="%{x} in-distribution, %{y} shifted<extra>%{fullData.name}</extra>",
        )
    axis = share_axis(ends) if measure.share else {"hoverformat": ".3f"}
    figure.update_xaxes(title_text=f"{measure.title}, in-distribution", **axis)
    figure.update_yaxes(title_text=f"{measure.title}, {escaped(title)}", **axis)
    figure.update_layout(height=460, margin=MARGIN, legend=LEGEND)
    return figure


def _cost_axis(measure: CostName, compared: Sequence[float], figure: go.Figure) -> dict[str, Any]:
    """From 0 on; logarithmic where what is compared differs much, with few round values and durations as people say them."""
    values = _drawn(figure, "x")
    low, high = min(values), max(values)
    if low <= 0 or max(compared) / min(compared) <= _WIDE:
        return {"rangemode": "tozero", "ticksuffix": " s" if measure == "seconds" else ""}
    if measure == "seconds":
        ticks = [seconds for seconds in _ROUND_SECONDS if low / 2 <= seconds <= high * 2]
        return {
            "type": "log",
            "tickmode": "array",
            "tickvals": ticks,
            "ticktext": [_round_duration(one) for one in ticks],
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


def _round_duration(seconds: int) -> str:
    for unit, word in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds // unit} {word}"
    return f"{seconds} s"


def by_depth(arms: Sequence[Arm], split: str) -> go.Figure | None:
    """Accuracy against how many stages train, a line per backbone and share of the data; None where all are cut alike. What did not train
    to the end, or has no epochs, says nothing of depth."""
    cut = [arm for arm in arms if arm.depth.whole and epochs_of(arm.config) and not arm.unfinished]
    if len({arm.depth.trained_stages for arm in cut}) < 2:
        return None
    depths = sorted({arm.depth.trained_stages for arm in cut})
    figure = _lines(
        arms,
        cut,
        # evenly spaced: the names need the room
        lambda arm: depths.index(arm.depth.trained_stages),
        lambda arm: (arm.config.backbone, arm.config.train_fraction),
        split,
    )
    names = {arm.depth.trained_stages: arm.depth.first_stage for arm in cut}
    one = len({arm.config.backbone for arm in cut}) == 1  # others have other stages
    words = [f"{escaped(names[count])}<br>({count})" if one else str(count) for count in depths]
    figure.update_xaxes(
        title_text="First stage that trains (how many train)" if one else "Stages that train",
        tickmode="array",
        tickvals=list(range(len(depths))),
        ticktext=words,
        zeroline=False,
        tickangle=0,
    )
    return figure


def by_data(arms: Sequence[Arm], split: str) -> go.Figure | None:
    """Accuracy against the number of training images, a line per strategy and backbone; None where all have as many. What did not train to
    the end says nothing of data."""
    ended = [arm for arm in arms if not arm.unfinished]
    if len({_training_images(arm) for arm in ended}) < 2:
        return None
    figure = _lines(
        arms,
        ended,
        _training_images,
        lambda arm: (arm.config.strategy, arm.config.cut, arm.config.backbone),
        split,
    )
    figure.update_xaxes(title_text="Training images", **whole_axis(max(_drawn(figure, "x"))))
    return figure


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of those (cost, accuracy) that no other beats in both, the cheapest first."""
    best, found = -1.0, []
    for at in sorted(range(len(points)), key=lambda at: (points[at][0], -points[at][1])):
        if points[at][1] > best:
            best = points[at][1]
            found.append(at)
    return found


def _lines(
    arms: Sequence[Arm],
    drawn: Sequence[Arm],
    where: Callable[[Arm], float],
    group: Callable[[Arm], Hashable],
    split: str,
) -> go.Figure:
    figure = go.Figure()
    for key in dict.fromkeys(group(arm) for arm in drawn):
        line = sorted((arm for arm in drawn if group(arm) == key), key=where)
        at = [arms.index(arm) for arm in line]
        figure.add_scatter(
            x=[where(arm) for arm in line],
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
                "color": [_color(n) for n in at],
                "symbol": [_symbol(n) for n in at],
                "size": 13,
                "opacity": 1,
            },
            text=[escaped(arm.title) for arm in line],
            hovertemplate="%{text}: %{y}<extra></extra>",
        )
    figure.update_yaxes(title_text=accuracy_name(split), **share_axis(_reach(drawn)))
    figure.update_layout(height=360, margin=MARGIN, showlegend=False)
    return figure


def _drawn(figure: go.Figure, axis: Literal["x", "y"]) -> list[float]:
    return [value for trace in figure.data for value in trace[axis]]


def _reach(arms: Sequence[Arm]) -> list[float]:
    """What an axis of accuracy has to hold: the intervals, and each seed."""
    return _ends([(arm.accuracy, [member.accuracy for member in arm.members]) for arm in arms])


def _ends(scores: Sequence[tuple[Interval, Sequence[Interval]]]) -> list[float]:
    return [
        end
        for whole, seeds in scores
        for end in (whole.low, whole.high, *(seed.value for seed in seeds))
    ]


def _training_images(arm: Arm) -> int:
    return int(arm.members[0].run.started["counts"]["train"])


def _uncached(cost: Cost) -> float | None:
    return (
        cost.uncached_seconds
        if cost.uncached_seconds and cost.uncached_seconds > cost.seconds
        else None
    )


def _error(interval: Interval) -> dict[str, Any]:
    return {
        "type": "data",
        "array": [interval.high - interval.value],
        "arrayminus": [interval.value - interval.low],
        "thickness": 1.5,
    }


def _color(at: int) -> str:
    return RUN_COLORS[at % len(RUN_COLORS)]


def _symbol(at: int) -> str:
    return RUN_SYMBOLS[at % len(RUN_SYMBOLS)]


def _marker(at: int) -> dict[str, Any]:
    return {"color": _color(at), "size": 13, "symbol": _symbol(at)}


def _wrapped(title: str) -> str:
    return "<br>".join(escaped(part) for part in title.split(" · "))
