"""Claim about strategies, held to 5 % by simulation, as in ``benchmarks/verdicts.py``."""

from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from finetune_core.evaluation.comparison.paired import (
    LEVEL,
    holm,
    image_variance,
    is_different,
    summarize_accuracy,
)
from finetune_core.evaluation.comparison.pairs import compare_pairs, pool_seed_variances
from finetune_core.evaluation.comparison.power import POWER, seeds_needed, smallest_detectable
from finetune_core.evaluation.comparison.strategies import (
    SeedVariance,
    accuracy_interval,
    compare_strategies,
    estimate_seed_variances,
    t_quantile,
    t_test_p_value,
    total_variance,
)
from tests.evaluation.simulated import max_by_chance, simulate_arms


def simulate_answers(random, gains, seeds, images=300, effect=0.3, **more):
    return [
        summarize_accuracy(side)
        for side in simulate_arms(random, gains, seeds, images, effect, **more)
    ]


def find_different(arms, variances):
    """Return which pairs are different by Student's t and Holm's correction."""
    claims = [
        compare_strategies(arms[a], arms[b], (variances[a], variances[b]))
        for a, b in combinations(range(len(arms)), 2)
    ]
    return [
        is_different(claim, p)
        for claim, p in zip(claims, holm([claim.p for claim in claims]), strict=True)
    ]


def own_variances(arms):
    return [estimate_seed_variances([arm])[0] for arm in arms]


def test_students_t_is_scipys():
    for freedom in (1.0, 2.7, 40.0, np.inf):
        assert t_quantile(0.975, freedom) == pytest.approx(stats.t.ppf(0.975, freedom))
        assert t_test_p_value(-0.03, 0.01, freedom) == pytest.approx(2 * stats.t.sf(3, freedom))


def test_pooling_is_the_residual_mean_square_of_an_analysis_of_variance_less_what_images_explain():
    arms = simulate_answers(np.random.default_rng(4), (0.0, 0.3, 0.6), (4, 2, 3), effect=0.8)
    residual = sum(arm.correct.mean(1).var(ddof=1) * (arm.seeds - 1) for arm in arms) / 6
    by_chance = sum(arm.chance * (arm.seeds - 1) for arm in arms) / 6
    for one, arm in zip(estimate_seed_variances(arms), arms, strict=True):
        assert (one.pooled, one.freedom, one.chance) == (True, 6, arm.chance)
        assert one.value == pytest.approx(residual - by_chance)


def test_where_only_seeds_matter_two_arms_are_compared_by_students_test():
    variances = SeedVariance(2e-3, 0.0, 4, pooled=True)
    variance, freedom = total_variance(0.0, 4000, [(variances, 3), (variances, 3)])
    assert (variance, freedom) == pytest.approx((2 * 2e-3 / 3, 4))
    apart = [SeedVariance(2e-3, 0.0, 2, pooled=False), SeedVariance(1e-4, 0.0, 2, pooled=False)]
    welch = (2e-3 / 3 + 1e-4 / 3) ** 2 / ((2e-3 / 3) ** 2 / 2 + (1e-4 / 3) ** 2 / 2)
    assert total_variance(0.0, 4000, [(one, 3) for one in apart])[1] == pytest.approx(welch)


def test_an_arm_whose_seeds_spread_far_more_is_compared_by_its_own_seeds_as_welch_does():
    random = np.random.default_rng(2)
    arms = simulate_answers(
        random, (0, 0, 0, 0), (4, 4, 4, 4), images=1000, effect=(0.05, 0.05, 0.05, 2.0)
    )
    variances = estimate_seed_variances(arms)
    assert [one.pooled for one in variances] == [True, True, True, False]
    assert variances[3].value + variances[3].chance == pytest.approx(arms[3].seed_variance)
    assert variances[0] == estimate_seed_variances(arms[:3])[0], "nor are the others compared by it"


def test_one_seed_says_nothing_of_its_strategy():
    arms = simulate_answers(np.random.default_rng(0), (0.6, 0.0, 0.0), (2, 1, 3))
    variances = estimate_seed_variances(arms)
    assert variances[1] is None
    assert compare_strategies(arms[0], arms[1], (variances[0], variances[1])) is None
    assert compare_strategies(arms[0], arms[2], (variances[0], variances[2])) is not None


def test_one_seeds_luck_with_the_same_seeds_again_is_no_seed_error():
    sides_of_one = simulate_arms(np.random.default_rng(1), (0.4, 0.0), (1, 1), 300, 0.3)
    variances = estimate_seed_variances(
        [summarize_accuracy(np.repeat(side, 3, 0)) for side in sides_of_one]
    )
    assert [one.value for one in variances] == pytest.approx([0, 0], abs=1e-12)


def test_no_kind_of_luck_is_less_than_none():
    """Seeds that agree leave the images' error; images that agree leave the seeds'."""
    variances = SeedVariance(0.0, 1e-4, 2, pooled=True)
    assert total_variance(5e-4, 300, [(variances, 2), (variances, 2)])[0] == 5e-4
    assert total_variance(0.0, 300, [(variances, 2), (variances, 2)])[0] == 1e-4


@pytest.mark.train
@pytest.mark.parametrize(
    ("seeds", "effect", "more"),
    [
        ((2, 2), 0.6, {}),
        pytest.param(*((3, 3), 0.2, {}), marks=pytest.mark.exhaustive),
        pytest.param(*((4, 4), 0.6, {}), marks=pytest.mark.exhaustive),
        pytest.param(*((2, 5), 0.6, {}), marks=pytest.mark.exhaustive),
        ((2, 3, 5), 0.3, {}),
        pytest.param(*((5, 5, 5), 0.6, {"images": 100}), marks=pytest.mark.exhaustive),
        pytest.param(*((2,) * 4, 0.6, {"together": 0.5}), marks=pytest.mark.exhaustive),
        ((3,) * 4, (0.3, 0.3, 0.3, 0.6), {}),
    ],
)
def test_a_a_equal_strategies_with_other_seeds_are_rarely_called_different(seeds, effect, more):
    random, trials = np.random.default_rng(sum(seeds)), 500
    wrong = 0
    for _ in range(trials):
        arms = simulate_answers(random, (0,) * len(seeds), seeds, effect=effect, **more)
        wrong += any(find_different(arms, estimate_seed_variances(arms)))
    assert wrong <= max_by_chance(trials, LEVEL)


@pytest.mark.train
def test_a_a_over_the_36_pairs_of_nine_strategies():
    seeds = (2, 2, 2, 3, 3, 3, 4, 4, 5)
    random, trials = np.random.default_rng(36), 200
    wrong = 0
    for _ in range(trials):
        arms = simulate_answers(random, (0,) * 9, seeds, images=200, effect=0.5)
        wrong += any(find_different(arms, estimate_seed_variances(arms)))
    assert wrong <= max_by_chance(trials, LEVEL)


@pytest.mark.train
@pytest.mark.parametrize(
    ("arms", "seeds", "gain"), [(2, 2, 1.2), pytest.param(3, 3, 0.9, marks=pytest.mark.exhaustive)]
)
def test_pooling_finds_true_differences_that_each_pairs_own_seeds_do_not_show(arms, seeds, gain):
    random, trials, found = np.random.default_rng(arms), 60, np.zeros(2)
    for _ in range(trials):
        drawn = simulate_answers(random, (gain, *(0,) * (arms - 1)), (seeds,) * arms, effect=0.15)
        found += [
            any(find_different(drawn, variances)[: arms - 1])
            for variances in (estimate_seed_variances(drawn), own_variances(drawn))
        ]
    pooled, alone = found
    assert pooled - alone > 0.2 * trials


@pytest.mark.train
def test_a_true_difference_of_strategies_is_found_at_the_power_stated():
    random, trials = np.random.default_rng(9), 250
    claims = []
    for _ in range(trials):
        arms = simulate_answers(random, (0.75, 0.0), (3, 3), images=540, effect=0.15)
        claims.append(compare_strategies(*arms, tuple(estimate_seed_variances(arms))))
    truth, result = (
        np.mean(values)
        for values in zip(
            *((one.gain, smallest_detectable(one, 540)) for one in claims), strict=True
        )
    )
    assert truth == pytest.approx(result, rel=0.1), "the case is meant to be just big enough"
    assert np.mean([claim.p <= LEVEL for claim in claims]) == pytest.approx(POWER, abs=0.1)


def test_two_seeds_and_a_thousand_images_show_five_points():
    """With each pair's own seed variance, clearly different networks would hardly have shown it."""
    random, pooled, before = np.random.default_rng(3), [], []
    for _ in range(30):
        arms = simulate_answers(random, (0.85, 0.0), (2, 2), images=1000, effect=0.1)
        for found, variances in (
            (pooled, estimate_seed_variances(arms)),
            (before, own_variances(arms)),
        ):
            found.append(smallest_detectable(compare_strategies(*arms, tuple(variances)), 1000))
    assert np.median(pooled) < 0.06 < 0.09 < np.median(before)


def test_the_seeds_that_are_asked_for_would_show_the_difference():
    one = SeedVariance(3e-4, 1e-5, 2, pooled=True)
    needed = seeds_needed(0.04, 1e-5, 1000, [(one, 2), (one, 2)])
    assert 2 < needed <= 10

    def power(seeds):
        more = SeedVariance(one.value, one.chance, 2 * (seeds - 1), pooled=True)
        variance, freedom = total_variance(1e-5 * 2 / seeds, 1000, [(more, seeds), (more, seeds)])
        return stats.nct.sf(stats.t.ppf(0.975, freedom), freedom, 0.04 / variance**0.5)

    assert power(needed) >= POWER > power(needed - 1)


def test_no_number_of_seeds_is_asked_for_where_the_images_are_too_few():
    one = SeedVariance(1e-6, 1e-6, 2, pooled=True)
    assert seeds_needed(0.01, 0.02**2, 300, [(one, 2), (one, 2)]) is None


def test_accuracy_of_one_run_has_wilsons_interval():
    interval = accuracy_interval(summarize_accuracy(np.array([[True] * 8 + [False] * 2])), None)
    # Wilson 1927, 8 of 10
    assert (interval.value, interval.low, interval.high) == pytest.approx(
        (0.8, 0.4902, 0.9433), abs=1e-4
    )


@pytest.mark.train
def test_accuracy_over_seeds_holds_the_truth_nineteen_times_out_of_twenty():
    random, trials = np.random.default_rng(2), 300
    truth = np.mean(
        [simulate_answers(random, (0,), (1,), images=4000, effect=0.4)[0].mean for _ in range(300)]
    )
    missed = 0
    for _ in range(trials):
        arms = simulate_answers(random, (0, 0), (3, 3), effect=0.4)
        variances = accuracy_interval(arms[0], estimate_seed_variances(arms)[0])
        missed += not variances.low <= truth <= variances.high
    assert missed <= max_by_chance(trials, LEVEL)


def test_perfect_seeds_are_not_certain():
    arm = summarize_accuracy(np.ones((3, 50), bool))
    variances = accuracy_interval(arm, estimate_seed_variances([arm])[0])
    assert variances.high == 1
    assert 0.9 < variances.low < 0.95


@pytest.mark.parametrize("right", [True, False])
def test_an_arm_without_any_spread_of_its_own_has_an_interval_from_the_seeds_of_the_others(right):
    random = np.random.default_rng(0)
    spread = [
        summarize_accuracy(np.array([random.random(200) < share for share in (0.3, 0.5, 0.8)]))
        for _ in range(3)
    ]
    same = summarize_accuracy(np.full((3, 200), right))
    variance = estimate_seed_variances([*spread, same])[3]
    assert variance.pooled
    assert variance.value > 0
    interval, alone = (accuracy_interval(same, one) for one in (variance, None))
    assert interval.value == alone.value == float(right)
    assert interval.high - interval.low > alone.high - alone.low
    assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_the_images_error_is_that_of_the_mean_gain():
    gained = np.random.default_rng(0).choice([-1.0, 0.0, 0.5, 1.0], 200)
    assert image_variance(gained) == pytest.approx(stats.sem(gained) ** 2)


def test_a_claim_about_strategies_is_never_made_where_the_one_about_their_networks_fails():
    """Five images leave Student's t no doubt, but five coins often fall alike."""
    arms = [summarize_accuracy(np.full((2, 5), right)) for right in (True, False)]
    pair = compare_pairs(arms, [True, True], estimate_seed_variances(arms))[0]
    assert pair.strategies.claim.p == pair.networks.claim.p == pytest.approx(2 / 2**5)
    assert not pair.strategies.different


def test_an_arm_that_was_stopped_is_compared_by_its_networks_only():
    arms = simulate_answers(np.random.default_rng(0), (1.5, 0.0, 0.0), (3, 3, 3))
    finished = [True, True, False]
    variances = pool_seed_variances(arms, finished)
    pairs = compare_pairs(arms, finished, variances)
    assert [pair.strategies is None for pair in pairs] == [False, True, True]
    assert [pair.networks.family for pair in pairs] == [3, 3, 3]
    assert pairs[0].strategies.family == 1
    assert variances[:2] == estimate_seed_variances(arms[:2])


def test_the_interval_of_an_arm_that_is_always_right_or_wrong_holds_its_accuracy():
    for images in range(1, 40):
        for right in (True, False):
            interval = accuracy_interval(summarize_accuracy(np.full((1, images), right)), None)
            assert interval.low <= interval.value <= interval.high
