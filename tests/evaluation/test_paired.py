from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from finetune_core.evaluation.paired import (
    LEVEL,
    POWER,
    accuracy_interval,
    bootstrap,
    holm,
    is_different,
    mcnemar_p,
    paired_test,
    sign_flip_p,
    smallest_seen,
)


def logistic(x):
    return 1 / (1 + np.exp(-x))


def sides(random, gains, seeds, images, seed_effect):
    """Who is right, bool ``[seeds, images]`` a side, better by each of ``gains`` (logits): most images are easy, a few hard; a seed
    is better or worse altogether, and with each image."""
    ease = random.normal(3.5, 3, images)

    def side(gain):
        logits = ease + gain + random.normal(0, seed_effect, (seeds, 1)) + random.normal(0, 1, (seeds, images))
        return random.random((seeds, images)) < logistic(logits)

    return [side(gain) for gain in gains]


def tables(random, seeds, images, seed_effect, better=0.0):
    return sides(random, (better, 0.0), seeds, images, seed_effect)


@given(some.lists(some.tuples(some.booleans(), some.booleans()), min_size=1, max_size=80))
@settings(max_examples=40, deadline=None)
def test_mcnemar_is_statsmodels_and_the_sign_flip_test_is_mcnemar_for_two_networks(answers):
    a, b = np.array(answers).T
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    expected = mcnemar(table, exact=True).pvalue
    assert mcnemar_p(a, b) == pytest.approx(expected, abs=1e-12)
    assert sign_flip_p(a.astype(int) - b) == pytest.approx(expected, abs=1e-12)


@given(some.lists(some.integers(-4, 4), min_size=2, max_size=9))
@settings(max_examples=40, deadline=None)
def test_the_sign_flip_test_is_scipys_permutation_test(units):
    units = np.array(units)
    expected = stats.permutation_test((units,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip_p(units) == pytest.approx(expected, abs=1e-9)


@given(some.lists(some.floats(0, 1), min_size=1, max_size=15))
@settings(max_examples=20, deadline=None)
def test_holm_is_statsmodels(p_values):
    np.testing.assert_allclose(holm(p_values), multipletests(p_values, method="holm")[1], atol=1e-12)


def test_bootstrap_is_scipys():
    random = np.random.default_rng(3)
    gained = random.choice([-1, 0, 1], p=[0.05, 0.85, 0.1], size=400)
    expected = stats.bootstrap((gained,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert bootstrap(gained) == pytest.approx((expected.low, expected.high), abs=0.004)
    assert bootstrap(gained) == bootstrap(gained)


def test_two_networks_are_judged_on_images_alone_and_strategies_by_their_seeds_too():
    a, b = tables(np.random.default_rng(0), 3, 400, 0.3, better=0.6)
    networks, strategies = paired_test(a[:1], b[:1]), paired_test(a, b)
    assert (networks.about, strategies.about) == ("networks", "strategies")
    assert networks.p == pytest.approx(mcnemar_p(a[0], b[0]))
    assert networks.seed_error is None
    assert strategies.difference == pytest.approx(a.mean() - b.mean())
    assert strategies.high - strategies.low > 2 * 1.96 * np.hypot(strategies.image_error, strategies.seed_error)
    assert paired_test(a, b[:1]).about == "networks"


def test_exchanging_the_sides_turns_everything_round():
    a, b = tables(np.random.default_rng(1), 2, 300, 0.3, better=0.4)
    one, other = paired_test(a, b), paired_test(b, a)
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert one.p == pytest.approx(other.p)


def test_one_seeds_luck_with_the_same_seeds_again_is_no_seed_error():
    a, b = tables(np.random.default_rng(1), 1, 300, 0.3, better=0.4)
    assert paired_test(np.repeat(a, 3, 0), np.repeat(b, 3, 0)).seed_error == 0


@pytest.mark.parametrize(
    ("seeds", "images", "seed_effect"), [(2, 300, 0.3), (3, 100, 0.0), (3, 540, 0.2), (3, 540, 0.6), (5, 300, 0.4)]
)
def test_a_a_the_same_strategy_with_other_seeds_is_rarely_called_different(seeds, images, seed_effect):
    random, trials = np.random.default_rng(images + seeds), 1000
    tests = [paired_test(*tables(random, seeds, images, seed_effect)) for _ in range(trials)]
    assert sum(is_different(test, test.p) for test in tests) <= LEVEL * trials
    assert sum(not test.low <= 0 <= test.high for test in tests) <= LEVEL * trials


def test_a_a_of_two_networks_that_are_equally_good():
    random, trials = np.random.default_rng(7), 1000
    tests = [paired_test(*tables(random, 1, 540, 0.0)) for _ in range(trials)]
    assert sum(is_different(test, test.p) for test in tests) <= LEVEL * trials


def test_a_a_over_all_pairs_of_four_strategies():
    """Holm: that anything at all is called different is as rare."""
    random, trials, wrong = np.random.default_rng(11), 1000, 0
    for _ in range(trials):
        tests = [paired_test(*pair) for pair in combinations(sides(random, (0, 0, 0, 0), 2, 200, 0.3), 2)]
        corrected = holm([test.p for test in tests])
        wrong += any(is_different(test, p) for test, p in zip(tests, corrected, strict=True))
    assert wrong <= LEVEL * trials


@pytest.mark.parametrize(("images", "discordance", "pairs"), [(540, 0.06, 1), (540, 0.06, 3), (150, 0.2, 1)])
def test_the_smallest_difference_of_two_networks_is_found_at_the_power_stated(images, discordance, pairs):
    random, trials, found = np.random.default_rng(5), 1000, 0
    told = [discordance * images / 2] * 2
    seen = paired_test(*tables(random, 1, images, 0.0))
    least = smallest_seen(type(seen)(**(vars(seen) | {"only_a": told[0], "only_b": told[1]})), pairs)
    ahead, behind = (discordance + least) / 2, (discordance - least) / 2
    for only_a, only_b, _ in random.multinomial(images, [ahead, behind, 1 - discordance], size=trials):
        found += stats.binomtest(only_a, only_a + only_b).pvalue <= LEVEL / pairs
    assert found / trials == pytest.approx(POWER, abs=0.04)


def test_a_true_difference_of_strategies_is_found_at_the_power_stated():
    random = np.random.default_rng(9)
    drawn = [tables(random, 3, 540, 0.15, better=0.8) for _ in range(400)]
    tests = [paired_test(*sides) for sides in drawn]
    truth = np.mean([test.difference for test in tests])
    told = np.mean([smallest_seen(test) for test in tests])
    assert truth == pytest.approx(told, rel=0.1), "the case is meant to be just big enough"
    assert np.mean([test.p <= LEVEL for test in tests]) == pytest.approx(POWER, abs=0.06)


def test_so_few_images_can_show_nothing():
    alike = paired_test(np.ones((1, 4), bool), np.ones((1, 4), bool))
    assert (alike.difference, alike.p, smallest_seen(alike)) == (0.0, 1.0, 1.0)
    one = paired_test(np.ones((2, 1), bool), np.zeros((2, 1), bool))
    assert one.p == 1.0


def test_accuracy_of_one_run_has_wilsons_interval():
    told = accuracy_interval(np.array([[True] * 8 + [False] * 2]))
    assert (told.value, told.low, told.high) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)  # Wilson 1927, 8 of 10


def test_accuracy_over_seeds_holds_the_truth_nineteen_times_out_of_twenty():
    random, trials = np.random.default_rng(2), 600
    truth = np.mean([tables(random, 1, 4000, 0.4)[0].mean() for _ in range(300)])
    told = [accuracy_interval(tables(random, 3, 300, 0.4)[0]) for _ in range(trials)]
    missed = sum(not one.low <= truth <= one.high for one in told)
    assert missed <= stats.binom.ppf(0.999, trials, LEVEL)


def test_perfect_seeds_are_not_certain():
    told = accuracy_interval(np.ones((3, 50), bool))
    assert told.high == 1
    assert 0.9 < told.low < 0.95
