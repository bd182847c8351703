"""Claim about networks, and its shared parts with the claim about strategies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from finetune_core.evaluation.comparison.paired import (
    LEVEL,
    bootstrap,
    combine_p_values,
    compare_networks,
    count_only_one_right,
    holm,
    is_different,
    mcnemar_p,
    sign_flip_p,
    summarize_accuracy,
)
from finetune_core.evaluation.comparison.power import POWER, smallest_detectable
from tests.evaluation.simulated import max_by_chance, simulate_arms


@given(some.lists(some.tuples(some.booleans(), some.booleans()), min_size=1, max_size=80))
@settings(max_examples=40, deadline=None)
def test_mcnemar_is_statsmodels_and_the_sign_flip_test_is_mcnemar_for_two_networks(given_answers):
    a, b = np.array(given_answers).T
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    expected = mcnemar(table, exact=True).pvalue
    assert mcnemar_p(a[None], b[None]) == pytest.approx(np.array([[expected]]), abs=1e-12)
    assert sign_flip_p(a.astype(int) - b) == pytest.approx(expected, abs=1e-12)


@given(some.lists(some.integers(-4, 4), min_size=2, max_size=9))
@settings(max_examples=40, deadline=None)
def test_the_sign_flip_test_is_scipys_permutation_test(units):
    units = np.array(units)
    expected = stats.permutation_test(
        (units,), np.sum, permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert sign_flip_p(units) == pytest.approx(expected, abs=1e-9)


@pytest.mark.fuzz
@given(some.lists(some.floats(0, 1), min_size=1, max_size=15))
@settings(max_examples=20, deadline=None)
def test_holm_is_statsmodels(p_values):
    np.testing.assert_allclose(
        holm(p_values), multipletests(p_values, method="holm")[1], atol=1e-12
    )


def test_bootstrap_is_scipys():
    random = np.random.default_rng(3)
    gained = random.choice([-1, 0, 1], p=[0.05, 0.85, 0.1], size=400)
    expected = stats.bootstrap(
        (gained,), np.mean, method="percentile", n_resamples=10_000, rng=1
    ).confidence_interval
    assert bootstrap(gained) == pytest.approx((expected.low, expected.high), abs=0.004)
    assert bootstrap(gained) == bootstrap(gained)


def test_mcnemar_looks_at_every_pair_of_networks_where_the_numbers_of_seeds_differ():
    """Testing each seed with its partner only would see one pair of these six."""
    a, b = simulate_arms(np.random.default_rng(0), (0.9, 0.0), (3, 2), 300, 0.3)
    found = mcnemar_p(a, b)
    assert found.shape == (3, 2)
    for (i, j), p in np.ndenumerate(found):
        only_a, only_b = int((a[i] & ~b[j]).sum()), int((~a[i] & b[j]).sum())
        assert p == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue)
    assert combine_p_values(found) == pytest.approx(min(1, np.sort(found, axis=None)[2] * 2))
    means = count_only_one_right(summarize_accuracy(a), summarize_accuracy(b))
    assert means == pytest.approx(
        (
            np.mean([(one & ~other).sum() for one in a for other in b]),
            np.mean([(other & ~one).sum() for one in a for other in b]),
        )
    )


def test_one_network_a_side_is_mcnemars_test_and_knows_no_seeds():
    a, b = simulate_arms(np.random.default_rng(0), (0.6, 0.0), (1, 1), 400, 0.3)
    claim = compare_networks(summarize_accuracy(a), summarize_accuracy(b))
    assert (claim.about, claim.freedom) == ("networks", np.inf)
    assert claim.p == pytest.approx(mcnemar_p(a, b)[0, 0])


def test_exchanging_the_sides_turns_everything_round():
    a, b = (
        summarize_accuracy(side)
        for side in simulate_arms(np.random.default_rng(1), (0.4, 0.0), (2, 3), 300, 0.3)
    )
    one, other = compare_networks(a, b), compare_networks(b, a)
    assert (one.gain, one.p) == pytest.approx((-other.gain, other.p))
    # its draws are others
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=4e-3)


@pytest.mark.train
@pytest.mark.parametrize("seeds", [(2, 1), pytest.param((3, 3), marks=pytest.mark.exhaustive)])
def test_networks_that_are_equally_good_are_rarely_called_different(seeds):
    random, trials = np.random.default_rng(sum(seeds)), 150
    claims = [
        compare_networks(
            *(summarize_accuracy(side) for side in simulate_arms(random, (0, 0), seeds, 300, 0.0))
        )
        for _ in range(trials)
    ]
    assert sum(is_different(claim, claim.p) for claim in claims) <= max_by_chance(trials, LEVEL)


@pytest.mark.train
@pytest.mark.parametrize(
    ("images", "discordance", "pairs"),
    [(540, 0.06, 3), pytest.param(150, 0.2, 1, marks=pytest.mark.exhaustive)],
)
def test_the_smallest_difference_of_two_networks_is_found_at_the_power_stated(
    images, discordance, pairs
):
    random, trials, found = np.random.default_rng(5), 1000, 0
    claim = compare_networks(
        *(summarize_accuracy(side) for side in simulate_arms(random, (0, 0), (1, 1), images, 0.0))
    )
    least = smallest_detectable(claim, images, pairs, discordance)
    ahead, behind = (discordance + least) / 2, (discordance - least) / 2
    for only_a, only_b, _ in random.multinomial(
        images, [ahead, behind, 1 - discordance], size=trials
    ):
        found += stats.binomtest(only_a, only_a + only_b).pvalue <= LEVEL / pairs
    assert found / trials == pytest.approx(POWER, abs=0.04)


def test_so_few_images_can_show_nothing():
    alike = [summarize_accuracy(np.ones((1, 4), bool))] * 2
    claim = compare_networks(*alike)
    assert (claim.gain, claim.p, smallest_detectable(claim, 4, discordance=0.0)) == (0.0, 1.0, 1.0)
    assert (
        compare_networks(
            summarize_accuracy(np.ones((2, 1), bool)), summarize_accuracy(np.zeros((2, 1), bool))
        ).p
        == 1.0
    )
