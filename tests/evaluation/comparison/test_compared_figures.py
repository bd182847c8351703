"""Figures of a comparison: an arm keeps its colour and symbol."""

import numpy as np
import pytest

from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.strategies import Interval
from finetune_core.figures.comparison import (
    find_pareto_front,
    list_costs,
    plot_accuracies,
    plot_depth,
    plot_learning_curves,
    plot_pareto_front,
    plot_shift,
    plot_training_size,
)


def right(share, images=200):
    return np.arange(images) < share * images


@pytest.fixture
def arms(make_run):
    """Make a cheap arm, a better one at a hundred times the cost, and a costly one no better."""
    runs = [
        make_run(right(share), seconds=3.0, strategy="feature_extraction", seed=seed)
        for seed, share in ((0, 0.7), (1, 0.72))
    ]
    runs += [
        make_run(right(0.9), seconds=300.0, trunk_rate=2.0),
        make_run(right(0.8), seconds=900.0, strategy="full"),
    ]
    return compare_runs(runs).arms


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 0.5), (2, 0.9), (3, 0.8)], [0, 1]),
        ([(3, 0.9), (1, 0.9)], [1]),
        ([(1, 0.5), (1, 0.6)], [1]),
        ([(5, 0.1)], [0]),
    ],
)
def test_on_the_frontier_nothing_is_better_and_cheaper(points, front):
    assert find_pareto_front(points) == front


def test_pareto_shows_each_arm_its_interval_and_what_the_cache_saved(arms):
    figure = plot_pareto_front("seconds", arms, "test")
    named = {trace.name: trace for trace in figure.data if trace.mode == "markers"}
    assert len(named) == len(arms)
    for arm in arms:
        trace = named[arm.title]
        assert trace.x[0] == arm.cost.seconds
        assert trace.y[0] + trace.error_y.array[0] == pytest.approx(arm.accuracy.high)
    saved = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [trace.name for trace in saved] == ["Feature extraction", "Last block"]
    assert saved[1].x[1] == pytest.approx(arms[1].cost.uncached_seconds)
    assert figure.layout.xaxis.type == "log"
    assert {"3 s", "30 s", "3 min", "30 min"} <= set(figure.layout.xaxis.ticktext)
    front = next(trace for trace in figure.data if trace.mode == "lines")
    assert list(front.x) == [3.0, 300.0]
    # only of seconds is known what the cache saved
    for trace in plot_pareto_front("disk_bytes", arms, "test").data:
        assert "open" not in str(trace.marker.symbol)


def test_the_best_stands_first_in_the_chart(arms):
    figure = plot_accuracies(arms, "test")
    ordered = sorted(arms, key=lambda arm: -arm.score.value)
    assert list(figure.layout.yaxis.ticktext) == [arm.title for arm in ordered]
    lines = {trace.x[0]: trace.y[0] for trace in figure.data if trace.error_x.array is not None}
    assert [lines[arm.score.value] for arm in ordered] == [0, 1, 2]


def test_colours_and_symbols_stay_with_the_arm(arms):
    dots = [
        trace for trace in plot_accuracies(arms, "test").data if trace.error_x.array is not None
    ]
    costs = [
        trace
        for trace in plot_pareto_front("seconds", arms, "test").data
        if trace.mode == "markers"
    ]
    by_name = {trace.name: trace for trace in plot_learning_curves("loss", "epoch", arms).data}
    curves = list(by_name.values())
    for at in range(len(arms)):
        assert dots[at].marker.color == costs[at].marker.color == curves[at].line.color
        assert dots[at].marker.symbol == costs[at].marker.symbol == curves[at].marker.symbol


def test_curves_show_every_seed_once_in_the_legend_by_epoch_and_by_clock(arms):
    by_epoch, by_clock = (
        plot_learning_curves("accuracy", axis, arms) for axis in ("epoch", "seconds")
    )
    assert len(by_epoch.data) == 4
    assert sum(trace.showlegend for trace in by_epoch.data) == 3
    assert list(by_epoch.data[0].x) == [1, 2]
    assert by_clock.layout.xaxis.type is None
    # three seconds of decoding and frozen stages come before the first step
    assert list(by_clock.data[0].x) == [5.0, 7.0]


def test_depth_is_drawn_where_arms_are_cut_differently(arms, make_run):
    figure = plot_depth(arms, "test")
    assert list(figure.data[0].y) == [arm.accuracy.value for arm in arms]
    assert list(figure.layout.xaxis.ticktext) == ["head<br>(1)", "block2<br>(2)", "stem<br>(4)"]
    alike = compare_runs([make_run(right(0.9)), make_run(right(0.8), learning_rate=0.1)]).arms
    assert plot_depth(alike, "test") is None


def test_data_are_drawn_where_arms_had_more_or_less_of_them(arms, make_run):
    assert plot_training_size(arms, "test") is None
    shares = {0.25: 0.7, 0.5: 0.8, 1.0: 0.9}
    runs = [make_run(right(share), train_fraction=part) for part, share in shares.items()]
    figure = plot_training_size(compare_runs(runs).arms, "test")
    assert list(figure.data[0].x) == [50, 100, 200]
    assert list(figure.data[0].y) == pytest.approx([0.7, 0.8, 0.9])


def test_what_was_stopped_is_no_point_of_depth_or_of_data(make_run):
    runs = [
        make_run(right(0.9)),
        make_run(right(0.8), strategy="full"),
        make_run(right(0.5), strategy="full", status="stopped"),
    ]
    compared = compare_runs([*runs, make_run(right(0.4), train_fraction=0.25, status="stopped")])
    assert len(compared.arms) == 4
    assert sorted(plot_depth(compared.arms, "test").data[0].y) == pytest.approx([0.8, 0.9])
    assert plot_training_size(compared.arms, "test") is None
    names = [trace.name for trace in plot_learning_curves("loss", "epoch", compared.arms).data]
    assert sum("stopped after 2 of 10 epochs" in name for name in names) == 2


@pytest.mark.parametrize(
    ("devices", "offered", "reason"),
    [
        ([("cpu", None)] * 2, "memory_bytes", ""),
        ([("cuda", 5), ("cuda", 9)], "device_bytes", ""),
        ([("cuda", 5), ("cpu", None)], None, "different devices (cpu, cuda)"),
        ([("cuda", 5), ("mps", 5)], None, "different devices (cuda, mps)"),
        ([("cuda", 5), ("cuda", None)], None, "not measured"),  # by an earlier version
    ],
)
def test_memory_is_an_axis_only_where_one_kind_of_device_trained_all_of_them(
    make_run, devices, offered, reason
):
    runs = [
        make_run(right(0.9), strategy=strategy, device=kind, device_bytes=size)
        for strategy, (kind, size) in zip(("last_block", "full"), devices, strict=True)
    ]
    arms = compare_runs(runs).arms
    names, why = list_costs(arms)
    assert [name for name in names if name in ("memory_bytes", "device_bytes")] == (
        [offered] if offered else []
    )
    assert reason in why
    assert bool(reason) == bool(why)
    for name in names:
        assert plot_pareto_front(name, arms, "test").data


def test_seeds_that_different_devices_trained_have_no_gpu_memory_in_common(make_run):
    devices = [{"device": kind, "device_bytes": 5} for kind in ("cuda", "mps")]
    runs = [make_run(right(0.9), seed=seed, **one) for seed, one in enumerate(devices)]
    [arm, _] = compare_runs([*runs, make_run(right(0.8), strategy="full", **devices[0])]).arms
    assert (arm.cost.device, arm.cost.device_bytes) == ("cuda, mps", None)
    assert "different devices" in list_costs([arm])[1]


def test_in_distribution_against_shifted_has_both_intervals_and_a_line_of_no_drop(arms):
    steps = [0.1 * at for at in range(len(arms))]
    shifted = [Interval(0.4 + step, 0.35 + step, 0.52 + step) for step in steps]
    figure = plot_shift(arms, shifted, "<i>night")
    line, *points = figure.data
    assert list(line.x) == list(line.y)
    for arm, other, point in zip(arms, shifted, points, strict=True):
        assert (point.x[0], point.y[0], point.name) == (arm.score.value, other.value, arm.title)
        assert point.x[0] - point.error_x.arrayminus[0] == pytest.approx(arm.score.low)
        assert point.y[0] + point.error_y.array[0] == pytest.approx(other.high)
    assert figure.layout.xaxis.range == figure.layout.yaxis.range
    assert figure.layout.yaxis.title.text == "Accuracy, &lt;i&gt;night"
    drawn = [
        trace
        for trace in plot_pareto_front("seconds", arms, "test").data
        if trace.mode == "markers"
    ]
    colours = {trace.name: trace.marker.color for trace in drawn}
    assert [point.marker.color for point in points] == [colours[arm.title] for arm in arms]
