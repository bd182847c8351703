"""Selection bias: the best of several arms looks better on the images that chose it."""

import numpy as np
import pytest

from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.optimism import selection_optimism
from tests.evaluation.simulated import draw_correct

LABELS = np.arange(200) % 2


def draw_equal_arms(random, arms=6):
    """Return float ``[arms, images]`` of arms that are all right on 80 % of new images."""
    return (random.random((arms, len(LABELS))) < 0.8).astype(float)


def test_among_equal_arms_it_is_most_of_what_the_best_gained_by_chance():
    random, estimated, gained = np.random.default_rng(0), [], []
    for _ in range(40):
        values = draw_equal_arms(random)
        estimated.append(selection_optimism(LABELS, values, 200))
        gained.append(values.mean(1).max() - 0.8)
    assert 0.5 < np.mean(estimated) / np.mean(gained) < 1.3
    assert np.mean(gained) > 0.02


def test_a_winner_by_far_or_a_single_arm_is_not_flattered():
    random = np.random.default_rng(0)
    values = draw_equal_arms(random, 2)
    values[1] *= random.random(len(LABELS)) < 0.5
    assert selection_optimism(LABELS, values, 400) == pytest.approx(0, abs=0.004)
    assert selection_optimism(LABELS, values[:1], 400) == pytest.approx(0, abs=0.004)


def test_more_equal_arms_flatter_the_best_more():
    values = draw_equal_arms(np.random.default_rng(0), 12)
    few, many = (selection_optimism(LABELS, values[:count], 400) for count in (2, 12))
    assert many > few > 0


def test_it_stands_beside_the_advised_arm_and_is_of_those_it_was_chosen_among(
    three_strategies, make_run
):
    compared = compare_runs(three_strategies)
    result = compared.to_json()
    assert 0 < compared.optimism < 0.01
    assert result["optimism"] == compared.optimism
    assert result["notes"][-1] == compared.footnote
    assert compared.footnote.startswith("“Feature extraction” was chosen on these images")
    single = make_run(draw_correct(0.9, 3), strategy="last_two_blocks")
    assert compare_runs([*three_strategies, single]).optimism == compared.optimism
