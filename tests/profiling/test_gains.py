"""Simultaneous intervals: their coverage if nothing is gained."""

import numpy as np
import pytest

from finetune_core.evaluation.comparison.paired import summarize_accuracy
from finetune_core.profiling import gains
from finetune_core.profiling.gains import simultaneous_gains
from tests.evaluation.simulated import simulate_arms

SEEDS = (1, 2, 2, 2, 2, 3, 3)  # of the probe and of six arms
PAIRS = [(place, 0) for place in range(1, len(SEEDS))]
IMAGES, TRIALS = 120, 120


def simulate_error_rate(effect, copies=1):
    """Return how often an interval excludes 0 although no arm differs from the probe."""
    random, wrong = np.random.default_rng(0), 0
    sets = np.repeat(np.arange(IMAGES), copies)
    for _ in range(TRIALS):
        effects = [0.0, *[effect] * len(PAIRS)]
        arms = simulate_arms(random, [0] * len(SEEDS), SEEDS, IMAGES, effects)
        repeated = [summarize_accuracy(np.repeat(arm, copies, axis=1)) for arm in arms]
        found = simultaneous_gains(repeated, PAIRS, 0, sets)
        wrong += any(one.low > 0 or one.high < 0 for one in found)
    return wrong / TRIALS


@pytest.mark.parametrize(("effect", "copies"), [(0.0, 1), (0.6, 1), (0.3, 3)])
def test_all_intervals_hold_at_once_where_nothing_is_gained(effect, copies):
    assert simulate_error_rate(effect, copies) <= 0.09  # 5 % and 2 standard errors


def test_without_the_seeds_the_intervals_would_not_hold(monkeypatch):
    monkeypatch.setattr(gains, "pool_seed_variances", lambda arms, _: [None] * len(arms))
    assert simulate_error_rate(1.0) > 0.15


def test_near_duplicates_that_counted_apart_would_make_gains_of_chance():
    arms = simulate_arms(np.random.default_rng(1), [0, 0.5], (1, 1), 60, 0.0)
    repeated = [summarize_accuracy(np.repeat(arm, 4, axis=1)) for arm in arms]
    (apart,) = simultaneous_gains(repeated, [(1, 0)], 0, np.arange(240))
    (together,) = simultaneous_gains(repeated, [(1, 0)], 0, np.repeat(np.arange(60), 4))
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    assert together.value == pytest.approx(apart.value)


def test_a_large_gain_is_seen_and_more_arms_widen_its_interval():
    random = np.random.default_rng(2)
    arms = [
        summarize_accuracy(arm)
        for arm in simulate_arms(random, [0, 3, 0, 0, 0], (1, 2, 2, 2, 2), 300, 0.1)
    ]
    sets = np.arange(300)
    (alone,) = simultaneous_gains(arms[:2], [(1, 0)], 0, sets)
    first, *others = simultaneous_gains(arms, [(place, 0) for place in range(1, 5)], 0, sets)
    assert first.low > 0
    assert first.high - first.low > alone.high - alone.low
    assert all(one.low <= 0 <= one.high for one in others)


def test_arms_with_one_seed_have_the_seeds_variance_of_the_others():
    random = np.random.default_rng(3)
    arms = [
        summarize_accuracy(arm) for arm in simulate_arms(random, [0, 0, 0], (1, 1, 3), 200, 2.0)
    ]
    sets = np.arange(200)
    pooled = simultaneous_gains(arms, [(1, 0)], 0, sets)[0]
    lone = simultaneous_gains(arms[:2], [(1, 0)], 0, sets)[0]
    assert pooled.high - pooled.low > lone.high - lone.low


def test_arms_that_answer_alike_have_no_gain():
    same = summarize_accuracy(np.arange(50)[None] < 30)
    (found,) = simultaneous_gains([same, same], [(1, 0)], 0, np.arange(50))
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
