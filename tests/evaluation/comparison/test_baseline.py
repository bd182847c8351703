"""Text of a comparison on the linear probe, the baseline that training has to beat."""

import pytest

from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.pair_text import describe_pair
from finetune_core.reports.html import arms_table, comparison_html
from finetune_core.runs.design import find_missing_baselines
from tests.evaluation.simulated import draw_correct, find_pair

SEEDS = range(3)


def make_runs(make_run, **shares):
    """Make three runs of each strategy, right on about that share of the images."""
    return [
        make_run(
            draw_correct(share, seed),
            strategy=name,
            seed=seed,
            seconds=6.0 if name == "linear_probe" else 30.0,
        )
        for name, share in shares.items()
        for seed in SEEDS
    ]


def test_what_beats_the_baseline_says_by_how_much(make_run):
    compared = compare_runs(make_runs(make_run, linear_probe=0.80, last_block=0.90, full=0.86))
    gain = find_pair(compared.to_json(), "Linear probe", "Last block")["difference"]
    assert (
        compared.baseline == f"“Last block” beats the linear probe by {abs(gain) * 100:.1f} points."
    )
    assert compared.to_json()["baseline"] == compared.baseline
    assert "beats the linear probe" in comparison_html(compared)


def test_with_one_seed_only_its_network_beats_the_baseline(make_run):
    runs = [
        make_run(draw_correct(0.80), strategy="linear_probe"),
        make_run(draw_correct(0.90), strategy="last_block"),
    ]
    assert compare_runs(runs).baseline.startswith(
        "These trained models: “Last block” beats the linear probe by "
    )


@pytest.mark.parametrize(
    ("shares", "words"),
    [
        (
            {"last_block": 0.851, "full": 0.849},
            "Nothing you trained is distinguishable from a linear probe that took 6.0 s.",
        ),
        (
            {"last_block": 0.851, "full": 0.70},
            "Nothing you trained is distinguishably better than a linear probe",
        ),
        (
            {"last_block": 0.70, "full": 0.70},
            "Everything you trained does worse than a linear probe",
        ),
    ],
)
def test_what_does_not_beat_the_baseline(make_run, shares, words):
    compared = compare_runs(make_runs(make_run, linear_probe=0.85, **shares))
    assert words in compared.baseline
    assert "6.0 s" in compared.baseline


def test_without_a_probe_or_with_one_of_another_backbone_there_is_no_baseline(make_run):
    others = [make_run(draw_correct(0.9, seed), strategy="full", seed=seed) for seed in SEEDS]
    probes = [
        make_run(draw_correct(0.8, seed), strategy="linear_probe", backbone="resnet18", seed=seed)
        for seed in SEEDS
    ]
    assert (
        compare_runs([*others, make_run(draw_correct(0.8), strategy="last_block")]).baseline == ""
    )
    assert compare_runs([*others, *probes]).baseline == ""


def test_an_ensemble_of_probes_is_no_baseline(make_run):
    trained = [make_run(draw_correct(0.9, seed), strategy="full", seed=seed) for seed in SEEDS]
    together = make_run(
        draw_correct(0.8),
        strategy="linear_probe",
        averaged={"how": "ensemble", "runs": ["/runs/a", "/runs/b"]},
    )
    assert compare_runs([*trained, together]).baseline == ""
    assert len(find_missing_baselines([run.config for run in [*trained, together]])) == 1


def compare_with_probe(make_run, shares, **settings):
    """Compare runs of the last block, one for each share, with one linear probe (80 %)."""
    trained = [
        make_run(draw_correct(share), strategy="last_block", seed=seed, **settings)
        for seed, share in enumerate(shares)
    ]
    return compare_runs(
        [*trained, make_run(draw_correct(0.80), strategy="linear_probe", **settings)]
    )


def test_one_fitted_probe_is_compared_in_general_and_asked_for_no_seeds(make_run):
    compared = compare_with_probe(make_run, (0.90, 0.89, 0.91))
    (pair,) = compared.pairs
    assert pair.strategies.different
    # Only the seeds of the last block add to the error.
    assert pair.seed_error < pair.image_error
    alone = compare_runs([*compared.arms[1].runs]).arms[0]
    assert alone.members[0].score == compared.arms[1].members[0].score
    assert compared.verdict.answer.startswith("Last block is best on 540 images: ")
    assert compared.advised is not None
    assert "seed" not in str(compared.verdict)
    assert not any("Three seeds" in note for note in compared.notes)
    columns, rows = arms_table(compared)
    spread = {row[0]: row[columns.index("Over seeds")] for row in rows}
    assert spread["Linear probe"] == "the same"


def test_beside_a_fitted_probe_only_the_trained_strategy_is_asked_for_seeds(make_run):
    compared = compare_with_probe(make_run, (0.76, 0.96))
    (pair,) = compared.pairs
    assert pair.seed_error > pair.image_error
    assert compared.verdict.action.startswith("Train more seeds of last block")
    assert "of each" not in describe_pair(compared.arms, pair).both
    few = compare_with_probe(make_run, (0.90,))
    text = describe_pair(few.arms, few.pairs[0]).strategies
    assert text == "not compared yet: “Last block” was trained with a single seed."
    assert few.verdict.action.startswith("Train more seeds to compare")


def test_of_a_share_of_the_images_a_probe_needs_seeds_because_the_seed_draws_them(make_run):
    compared = compare_with_probe(make_run, (0.90, 0.89), train_fraction=0.5)
    text = describe_pair(compared.arms, compared.pairs[0]).strategies
    assert text == "not compared yet: “Linear probe” was trained with a single seed."


def test_two_fitted_heads_are_compared_in_general_without_seeds(make_run):
    fitted = {"linear_probe": 0.90, "prototypes": 0.80}
    runs = [make_run(draw_correct(share), strategy=name) for name, share in fitted.items()]
    compared = compare_runs(runs)
    assert compared.pairs[0].strategies.different
    assert compared.verdict.action == "Use linear probe."
    assert not compared.notes


def test_seeds_of_one_fitted_head_are_one_method_which_is_not_to_be_chosen(make_run):
    runs = [make_run(draw_correct(0.8), strategy="linear_probe", seed=seed) for seed in SEEDS]
    compared = compare_runs(runs)
    assert compared.advised is None
    text = describe_pair(compared.arms, compared.pairs[0]).strategies
    assert text == "not compared: both are the same method, fitted without epochs."


@pytest.mark.train
def test_seeds_of_a_probe_do_not_make_other_seeds_look_alike(make_run):
    """A probe is the same with every seed: pooled, it would halve the seeds' variance."""
    trained = [
        make_run(draw_correct(share + gain), strategy=name, seed=seed)
        for name, share in (("last_block", 0.85), ("full", 0.80))
        for seed, gain in enumerate((-0.04, 0.0, 0.04))
    ]
    probes = [make_run(draw_correct(0.82), strategy="linear_probe", seed=seed) for seed in SEEDS]
    alone, beside = (
        find_pair(compare_runs(runs).to_json(), "Last block", "Full fine-tuning")
        for runs in (trained, [*trained, *probes])
    )
    assert beside["strategies"]["ci_low"] == pytest.approx(alone["strategies"]["ci_low"])
    assert beside["seed_error"] == pytest.approx(alone["seed_error"])
    assert alone["seed_error"] > 0.01
