"""Published orderings of strategies, compared with measurements."""

from typing import get_args

import pytest

from finetune_core.config.run_config import StrategyName
from finetune_core.data.splits import SHIFTED
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.orderings import ORDERINGS, find_contradictions
from finetune_core.formatting import format_points
from finetune_core.reports.html import comparison_html
from finetune_core.training.strategies.catalogue import STRATEGIES
from tests.evaluation.simulated import IMAGES, draw_correct


def make_runs(make_run, shares, seeds=3, **settings):
    """Make runs right on these shares; ``settings`` apply to the last strategy only."""
    last = list(shares)[-1]
    return [
        make_run(
            draw_correct(share, seed),
            strategy=name,
            seed=seed,
            **(settings if name == last else {}),
        )
        for name, share in shares.items()
        for seed in range(seeds)
    ]


def test_each_ordering_is_of_known_strategies_and_its_source_is_cited_by_their_help():
    for one in ORDERINGS:
        assert {one.better, one.worse} <= set(get_args(StrategyName))
        assert any(one.source in STRATEGIES[name].source for name in (one.better, one.worse)), one
    pairs = [(one.axis, frozenset((one.better, one.worse))) for one in ORDERINGS]
    assert len(set(pairs)) == len(pairs), "two that say the opposite would always be contradicted"


def test_a_strategy_that_is_worse_than_it_is_said_to_be_is_named_with_source_and_interval(make_run):
    compared = compare_runs(make_runs(make_run, {"feature_extraction": 0.90, "last_block": 0.80}))
    claim = compared.pairs[0].strategies.claim
    loss, low, high = (format_points(value) for value in (claim.gain, claim.low, claim.high))
    [sentence] = compared.published
    assert sentence == (
        "“Last block” is said to beat “Feature extraction” (Yosinski et al. 2014); "
        f"on these {IMAGES} images it is {loss} points worse ({low} to {high})."
    )
    assert compared.to_json()["published"] == [sentence]
    assert "Yosinski et al. 2014" in comparison_html(compared)


def test_it_does_not_matter_which_of_the_two_stands_first(make_run):
    compared = compare_runs(make_runs(make_run, {"full": 0.80, "first_block": 0.70}))
    turned = compare_runs(make_runs(make_run, {"from_scratch": 0.90, "full": 0.80}))
    assert (
        "“First block” is said to beat “Full fine-tuning” where images differ"
        in compared.published[0]
    )
    assert "“Full fine-tuning” is said to beat “From scratch” (" in turned.published[0]


@pytest.mark.parametrize(
    "shares",
    [
        {"feature_extraction": 0.80, "last_block": 0.90},
        {"feature_extraction": 0.850, "last_block": 0.845},
        {"linear_probe": 0.90, "full": 0.80},
        {"full": 0.90, "linear_probe_then_full": 0.80},
    ],
    ids=["as published", "not distinguishable", "not published", "of another axis"],
)
def test_nothing_is_said_without_a_significant_verdict_against_it(make_run, shares):
    assert compare_runs(make_runs(make_run, shares)).published == ()


@pytest.mark.train
def test_nothing_is_said_of_arms_that_differ_in_more_than_the_strategy_or_were_stopped(make_run):
    shares = {"feature_extraction": 0.90, "last_block": 0.80}
    for settings in (
        {"train_fraction": 0.25},
        {"epochs": 5},
        {"image_size": 96},
        {"backbone": "resnet18"},
    ):
        assert compare_runs(make_runs(make_run, shares, **settings)).published == (), settings
    for status, said in (("finished", 1), ("stopped", 0)):
        runs = [
            make_run(draw_correct(0.90), strategy="feature_extraction"),
            make_run(draw_correct(0.80), strategy="last_block", status=status),
        ]
        assert len(compare_runs(runs).published) == said


def test_published_are_accuracies_so_nothing_is_said_of_other_metrics(make_run):
    assert (
        compare_runs(
            make_runs(make_run, {"feature_extraction": 0.90, "last_block": 0.80}), "log_loss"
        ).published
        == ()
    )


def test_with_one_seed_the_networks_speak(make_run):
    [sentence] = compare_runs(
        make_runs(make_run, {"feature_extraction": 0.90, "last_block": 0.80}, seeds=1)
    ).published
    assert f"on these {IMAGES} images its network is " in sentence


def test_on_shifted_images_only_what_is_said_of_those_counts(make_run):
    runs = make_runs(
        make_run,
        {
            "feature_extraction": 0.95,
            "last_block": 0.80,
            "full": 0.70,
            "linear_probe_then_full": 0.60,
        },
    )
    compared = compare_runs(runs)
    [sentence] = find_contradictions(compared.arms, compared.pairs, SHIFTED)
    assert (
        "(LP-FT)” is said to beat “Full fine-tuning” on shifted images (Kumar et al. 2022)"
        in sentence
    )
    assert f"on these {IMAGES} shifted images it is " in sentence
    assert "Kumar" not in " ".join(compared.published)
