"""Figure of the probes of several networks by stage."""

from finetune_core.evaluation.advice.ranking import rank_candidates
from finetune_core.figures.advice import MOST, plot_probes_by_stage
from tests.evaluation.advice.test_ranking import make_probes


def plot(*networks):
    return plot_probes_by_stage(
        rank_candidates(networks), {one.backbone: one.stages for one in networks}
    )


def test_each_network_has_a_line_in_the_order_of_its_stages_with_intervals():
    figure = plot(make_probes("a", 0.5, 0.9, 0.7), make_probes("<b>", 0.6, 0.8, 0.95))
    assert [line.name for line in figure.data] == ["&lt;b&gt;", "a"]
    assert list(figure.data[1].y) == [0.5, 0.9, 0.7]
    assert all(
        0 < end < 0.1
        for line in figure.data
        for end in (*line.error_y.array, *line.error_y.arrayminus)
    )
    assert list(figure.layout.xaxis.ticktext) == ["block0", "block1", "block2"]
    low, high = figure.layout.yaxis.range
    assert low < 0.46
    assert high > 0.96


def test_stages_of_networks_that_have_other_ones_are_numbered():
    assert list(
        plot(make_probes("a", 0.5, 0.9), make_probes("b", 0.6, 0.8, 0.7)).layout.xaxis.ticktext
    ) == ["1", "2", "3"]


def test_of_many_networks_the_best_are_drawn_and_of_none_an_empty_figure():
    figure = plot(*(make_probes(f"n{at}", 0.9 - at / 100) for at in range(MOST + 2)))
    assert [line.name for line in figure.data] == [f"n{at}" for at in range(MOST)]
    assert not plot_probes_by_stage((), {}).data
