"""Macro F1 and log loss as the metric of a comparison."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import stats
from sklearn.metrics import f1_score, log_loss

from finetune_core.errors import ConfigError
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.measures import (
    ACCURACY,
    MEASURES,
    f1_pseudo_values,
    resample_f1,
)
from finetune_core.evaluation.comparison.paired import (
    LEVEL,
    compare_networks,
    is_different,
    random_flip_p,
    sign_flip_p,
    summarize_measure,
)
from finetune_core.evaluation.comparison.strategies import (
    compare_strategies,
    estimate_seed_variances,
    image_variance,
    measure_interval,
)
from finetune_core.evaluation.single_run.evaluate import score_run
from finetune_core.reports.build import build_report
from tests.evaluation.simulated import draw_correct, find_pair, max_by_chance, simulate_logits

OTHERS = [MEASURES["macro_f1"], MEASURES["log_loss"]]


@given(some.integers(2, 5), some.integers(3, 40), some.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_pseudo_values_have_macro_f1_for_their_mean_and_a_resample_is_scikit_learns(
    classes, count, seed
):
    random = np.random.default_rng(seed)
    labels, predicted = random.integers(0, classes, count), random.integers(0, classes + 1, count)
    present = np.unique(labels)

    def expected(rows):
        return f1_score(
            labels[rows], predicted[rows], labels=present, average="macro", zero_division=0
        )

    every = np.arange(count)
    assert f1_pseudo_values(labels, predicted[None]).mean() == pytest.approx(expected(every))
    drawn = np.concatenate(
        [random.choice(np.flatnonzero(labels == one), (labels == one).sum()) for one in present]
    )
    weights = np.bincount(drawn, minlength=count)[:, None].astype(float)
    assert resample_f1(labels, predicted, weights)[0] == pytest.approx(expected(drawn))


@pytest.mark.train
def test_pseudo_values_know_how_macro_f1_varies_over_images():
    random = np.random.default_rng(0)
    found = []
    for _ in range(400):
        labels = random.integers(0, 3, 300)
        predicted = np.where(random.random(300) < 0.7, labels, random.integers(0, 3, 300))
        values = f1_pseudo_values(labels, predicted[None])[0]
        found.append((values.mean(), image_variance(values) ** 0.5))
    values, errors = np.array(found).T
    assert np.mean(errors) == pytest.approx(values.std(), rel=0.1)


@pytest.mark.parametrize("measure", OTHERS, ids=lambda one: one.name)
def test_scores_are_scikit_learns_and_the_bootstrap_is_of_the_measure_itself(measure):
    labels, logits = simulate_logits(np.random.default_rng(1), (0.0, 1.0), (2, 2), 400)
    arms = summarize_measure(measure, labels, logits)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for arm, one in zip(arms, probabilities, strict=True):
        value = measure_interval(arm, estimate_seed_variances([arm])[0])
        single = [
            log_loss(labels, network)
            if measure.lower_is_better
            else f1_score(labels, network.argmax(1), average="macro")
            for network in one
        ]
        assert value.value == pytest.approx(np.mean(single))
        assert value.low < value.value < value.high
        assert arm.seed_variance == pytest.approx(np.var(single, ddof=1))
    claim = compare_networks(arms[1], arms[0])
    assert claim.low < claim.gain < claim.high
    assert (claim.high - claim.low) / (2 * 1.96) == pytest.approx(claim.error, rel=0.15)
    assert claim.p < 0.01


def test_random_flips_agree_with_the_exact_test():
    random = np.random.default_rng(2)
    units = random.choice([-1, 0, 1], size=200, p=[0.1, 0.75, 0.15])
    assert random_flip_p(units.astype(float)) == pytest.approx(sign_flip_p(units), abs=0.012)
    gained = random.normal(0.1, 1, 300)
    assert random_flip_p(gained) == pytest.approx(stats.ttest_1samp(gained, 0).pvalue, abs=0.02)
    assert random_flip_p(np.ones(3)) == pytest.approx(2 / 2**3, abs=0.02)
    assert random_flip_p(np.zeros(5)) == 1.0


@pytest.mark.train
@pytest.mark.parametrize("measure", OTHERS, ids=lambda one: one.name)
@pytest.mark.parametrize("seeds", [(2, 2), pytest.param((3, 3), marks=pytest.mark.exhaustive)])
def test_equally_good_arms_are_rarely_called_different(measure, seeds):
    """Networks are tested without an effect of the seed, strategies with one."""
    random, trials, found = np.random.default_rng(sum(seeds)), 120, np.zeros(2)
    for _ in range(trials):
        arms = summarize_measure(
            measure, *simulate_logits(random, (0.0, 0.0), seeds, 240), resamples=200
        )
        claim = compare_networks(*arms)
        found[0] += is_different(claim, claim.p)
        if min(seeds) > 1:
            arms = summarize_measure(
                measure, *simulate_logits(random, (0.0, 0.0), seeds, 240, effect=0.3), resamples=2
            )
            wider = compare_strategies(*arms, tuple(estimate_seed_variances(arms)))
            found[1] += is_different(wider, wider.p)
    assert (found <= max_by_chance(trials, LEVEL)).all()


@pytest.mark.parametrize(
    ("measure", "score"),
    [("accuracy", "accuracy"), ("macro_f1", "f1_macro"), ("log_loss", "log_loss")],
)
def test_one_network_has_the_interval_of_its_evaluation(make_run, measure, score):
    """The interval is the same alone, as a seed of an arm of several, and as an ensemble."""
    runs = [make_run(draw_correct(0.9)[:60], seed=seed) for seed in range(2)]
    runs += [make_run(draw_correct(0.8)[:60], strategy="full")]
    compared = compare_runs(runs, measure)
    singles = [member for arm in compared.arms for member in arm.members]
    for member in singles:
        wanted = score_run(member.run, "test").table.set_index("name").loc[score]
        found = member.score
        assert (found.value, found.low, found.high) == pytest.approx(tuple(wanted), abs=1e-9)
    (alone,) = [arm for arm in compared.arms if len(arm.members) == 1]
    assert alone.score == alone.members[0].score
    # Networks that answer alike are their own ensemble.
    (twice,) = [arm for arm in compared.arms if len(arm.members) == 2]
    assert twice.ensemble.low == pytest.approx(twice.members[0].score.low)
    assert twice.ensemble.high == pytest.approx(twice.members[0].score.high)


def _find_places(compared, pair):
    titles = [arm.title for arm in compared.arms]
    return titles.index(pair["a"]), titles.index(pair["b"])


@pytest.mark.train
@pytest.mark.parametrize("name", ["macro_f1", "log_loss"])
def test_a_comparison_uses_the_chosen_metric_and_says_so(three_strategies, name):
    compared = compare_runs(three_strategies, name)
    result, measure = compared.to_json(), MEASURES[name]
    assert result["measure"] == name
    assert f" test images: {measure.of} " in compared.verdict.answer
    better = find_pair(result, "Feature extraction", "Full fine-tuning")
    assert better["different"]
    sign = -1 if (better["a"] == "Feature extraction") == measure.lower_is_better else 1
    assert better["difference"] * sign > 0
    (pair,) = [one for one in compared.pairs if (one.a, one.b) == _find_places(compared, better)]
    scores_of_both = [compared.arms[at].score.value for at in (pair.a, pair.b)]
    assert pair.difference == pytest.approx(better["difference"])
    assert pair.difference == pytest.approx(scores_of_both[0] - scores_of_both[1])
    assert better["ci_low"] <= better["difference"] <= better["ci_high"]
    assert " beats " in better["strategies"]["verdict"]
    assert measure.unit in better["strategies"]["verdict"]
    assert compared.arm_verdicts[-1].kind == "worse"
    assert all(arm["score_low"] <= arm["score"] <= arm["score_high"] for arm in result["arms"])
    page = build_report(compared)
    assert f"<th>{measure.title}</th>" in page
    assert f"Difference ({measure.unit})" in page
    json.dumps(result, allow_nan=False)


def test_accuracy_is_the_default_metric(make_run):
    compared = compare_runs(
        [make_run(draw_correct(0.9)), make_run(draw_correct(0.8), strategy="full")]
    )
    assert compared.measure is ACCURACY
    assert all(arm.score == arm.accuracy for arm in compared.arms)


def test_a_measure_that_there_is_not_is_refused(make_run):
    with pytest.raises(ConfigError, match="accuracy, macro_f1, log_loss"):
        compare_runs([make_run(draw_correct(0.9))], "f2")
