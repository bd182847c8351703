"""What a comparison says of the linear probe, the baseline that training has to beat."""

import pytest

from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.report import comparison_html
from finetune_core.runs.design import lacking_baselines
from tests.evaluation.simulated import pair_of, right

SEEDS = range(3)


def runs_of(made_run, **shares):
    """Three runs of each strategy, right on about that share of the images."""
    return [
        made_run(
            right(share, seed),
            strategy=name,
            seed=seed,
            seconds=6.0 if name == "linear_probe" else 30.0,
        )
        for name, share in shares.items()
        for seed in SEEDS
    ]


def test_what_beats_the_baseline_says_by_how_much(made_run):
    compared = compare_runs(runs_of(made_run, linear_probe=0.80, last_block=0.90, full=0.86))
    gain = pair_of(compared.to_json(), "Linear probe", "Last block")["difference"]
    assert (
        compared.baseline == f"“Last block” beats the linear probe by {abs(gain) * 100:.1f} points."
    )
    assert compared.to_json()["baseline"] == compared.baseline
    assert "beats the linear probe" in comparison_html(compared)


def test_with_one_seed_only_its_network_beats_the_baseline(made_run):
    runs = [
        made_run(right(0.80), strategy="linear_probe"),
        made_run(right(0.90), strategy="last_block"),
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
def test_what_does_not_beat_the_baseline(made_run, shares, words):
    compared = compare_runs(runs_of(made_run, linear_probe=0.85, **shares))
    assert words in compared.baseline
    assert "6.0 s" in compared.baseline


def test_without_a_probe_or_with_one_of_another_backbone_there_is_no_baseline(made_run):
    others = [made_run(right(0.9, seed), strategy="full", seed=seed) for seed in SEEDS]
    probes = [
        made_run(right(0.8, seed), strategy="linear_probe", backbone="resnet18", seed=seed)
        for seed in SEEDS
    ]
    assert compare_runs([*others, made_run(right(0.8), strategy="last_block")]).baseline == ""
    assert compare_runs([*others, *probes]).baseline == ""


def test_an_ensemble_of_probes_is_no_baseline(made_run):
    trained = [made_run(right(0.9, seed), strategy="full", seed=seed) for seed in SEEDS]
    together = made_run(
        right(0.8),
        strategy="linear_probe",
        averaged={"how": "ensemble", "runs": ["/runs/a", "/runs/b"]},
    )
    assert compare_runs([*trained, together]).baseline == ""
    assert len(lacking_baselines([run.config for run in [*trained, together]])) == len(SEEDS)


@pytest.mark.train
def test_seeds_of_a_probe_do_not_make_other_seeds_look_alike(made_run):
    """A probe is the same with every seed: pooled, it would halve the seeds' share."""
    trained = [
        made_run(right(share + gain), strategy=name, seed=seed)
        for name, share in (("last_block", 0.85), ("full", 0.80))
        for seed, gain in enumerate((-0.04, 0.0, 0.04))
    ]
    probes = [made_run(right(0.82), strategy="linear_probe", seed=seed) for seed in SEEDS]
    alone, beside = (
        pair_of(compare_runs(runs).to_json(), "Last block", "Full fine-tuning")
        for runs in (trained, [*trained, *probes])
    )
    assert beside["strategies"]["ci_low"] == pytest.approx(alone["strategies"]["ci_low"])
    assert beside["seed_error"] == pytest.approx(alone["seed_error"])
    assert alone["seed_error"] > 0.01
