"""Simultaneous intervals of several candidates: they cover the best one, and copies count once."""

import numpy as np
import pytest
from scipy.stats import norm, t

from finetune_core.evaluation.advice.simultaneous import simultaneous_intervals
from finetune_core.evaluation.intervals import accuracy_interval, wilson

DRAWS = 120


def draw_guesses(random, candidates=8, groups=80, copies=4, alike=0.95, accuracy=0.5):
    """Return answers of correlated candidates right by chance; near-duplicates are mostly equal."""
    shared = random.standard_normal(groups)
    own = random.standard_normal((candidates, groups))
    right = (shared + own) / np.sqrt(2) < norm.ppf(accuracy)
    anew = random.random((candidates, groups * copies)) > alike
    by_chance = random.random((candidates, groups * copies)) < accuracy
    return np.where(anew, by_chance, right.repeat(copies, axis=1)), np.arange(groups).repeat(copies)


@pytest.mark.train
@pytest.mark.parametrize(
    "data", [{}, {"candidates": 27, "accuracy": 0.8}, {"groups": 12, "copies": 6}]
)
def test_the_interval_of_the_best_covers_its_true_accuracy(data):
    random, truth = np.random.default_rng(0), data.get("accuracy", 0.5)
    covered = alone = 0
    for _ in range(DRAWS):
        right, sets = draw_guesses(random, **data)
        best = right.mean(axis=1).argmax()
        low, high = simultaneous_intervals(right, sets)
        covered += low[best] <= truth <= high[best]
        _, plain_low, plain_high = accuracy_interval(int(right[best].sum()), right.shape[1])
        alone += plain_low <= truth <= plain_high
    assert covered / DRAWS > 0.91
    assert alone / DRAWS < 0.9  # what the test would find without groups and correction


@pytest.mark.train
def test_the_intervals_of_all_hold_together_in_95_percent_of_samples():
    random = np.random.default_rng(1)
    held = 0
    for _ in range(DRAWS):
        right, sets = draw_guesses(random)
        low, high = simultaneous_intervals(right, sets)
        held += ((low <= 0.5) & (high >= 0.5)).all()
    assert held / DRAWS == pytest.approx(0.95, abs=0.05)


def test_one_candidate_on_independent_images_has_wilsons_interval():
    right = (np.arange(100) < 70)[None]
    low, high = simultaneous_intervals(right, np.arange(100))
    assert (low[0], high[0]) == pytest.approx(accuracy_interval(70, 100)[1:])


def test_one_candidate_on_copies_has_the_interval_of_the_groups_with_students_t():
    right = (np.arange(20) < 14).repeat(5)[None]
    low, high = simultaneous_intervals(right, np.arange(20).repeat(5))
    # The design effect compares variances that are both unbiased.
    effective = 100 / ((20 / 19) / (100 / 99) * 5)
    wanted = wilson(0.7 * effective, effective, t.ppf(0.975, 19))
    assert (low[0], high[0]) == pytest.approx((float(wanted[0]), float(wanted[1])))


def test_candidates_that_answer_alike_need_no_correction():
    right = np.repeat((np.arange(200) < 150)[None], 8, axis=0)
    low, high = simultaneous_intervals(right, np.arange(200))
    wanted = accuracy_interval(150, 200)[1:]
    assert (low[0], high[0]) == pytest.approx(wanted, abs=2e-3)


def test_candidates_that_are_always_right_or_never_have_an_interval():
    right = np.stack([np.ones(40, bool), np.zeros(40, bool), np.arange(40) < 20])
    low, high = simultaneous_intervals(right, np.arange(10).repeat(4))
    assert high[0] == 1.0 > low[0] > 0.4
    assert low[1] == 0.0 < high[1] < 0.6
