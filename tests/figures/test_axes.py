"""Axes before they are drawn. ``tests/browser/test_figures_drawn.py`` draws them with Plotly."""

import numpy as np
import pytest

from finetune_core.figures.axes import choose_percent_format, choose_tick_step, make_share_axis


@pytest.mark.parametrize(
    "values", [[0.985, 0.993, 1.0], [0.0, 0.004], [0.2, 0.9], [1.0], [0.0], [0.5], [0.0, 1.0], []]
)
def test_an_axis_of_shares_has_room_for_all_and_none_for_a_tick_that_cannot_be(values):
    low, high = make_share_axis(values)["range"]
    assert low < min(values, default=0.5) <= max(values, default=0.5) < high
    assert high - low >= 0.01
    tick = (high - low) / 10  # plotly has ten at most, so they are at least as far apart
    assert low > -tick
    assert high < 1 + tick


def test_an_axis_of_shares_passes_over_what_is_not_defined():
    assert make_share_axis([0.4, np.nan, 0.6, np.inf]) == make_share_axis([0.4, 0.6])


@pytest.mark.parametrize(
    ("most", "step"),
    [(0, 1), (1, 1), (6, 1), (7, 2), (12, 2), (30, 5), (60, 10), (100, 20), (12345, 5000)],
)
def test_counts_have_few_whole_ticks(most, step):
    assert choose_tick_step(most) == step


@pytest.mark.parametrize(
    ("values", "written"),
    [
        ([0.7, 0.8], ["70.0%", "80.0%"]),
        ([0.991, 0.9943], ["99.10%", "99.43%"]),
        ([0.9991, 0.9993], ["99.910%", "99.930%"]),
        ([0.5, 0.9996], ["50.00%", "99.96%"]),
        ([0.5, 1.0], ["50.0%", "100.0%"]),
        ([0.0002], ["0.02%"]),
        ([np.nan], ["nan%"]),
    ],
)
def test_the_label_of_a_point_has_the_digits_that_matter(values, written):
    assert [format(value, choose_percent_format(values)) for value in values] == written
