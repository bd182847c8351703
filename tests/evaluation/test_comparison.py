import json

import numpy as np
import pytest

from finetune_core.config import make_config
from finetune_core.errors import RunError
from finetune_core.evaluation.arms import arm_titles
from finetune_core.evaluation.comparison import compare_runs
from finetune_core.evaluation.costs import cost, depth, timeline
from finetune_core.evaluation.paired import mcnemar_p
from finetune_core.evaluation.report import report_html
from finetune_core.figures.compared import comparison_figures

IMAGES = 540


def right(share, seed=0):
    """Right on a share of the images; the same images for the same seed, but for a few."""
    ease = np.random.default_rng(99).random(IMAGES) + np.random.default_rng(seed).normal(0, 0.02, IMAGES)
    return ease < share


@pytest.fixture
def three_strategies(made_run):
    """Two seeds each: two that are alike, of which one is cheap, and one that is worse."""
    shares = {"feature_extraction": (0.9, 3.0), "last_block": (0.905, 20.0), "full": (0.7, 60.0)}
    return [
        made_run(right(share, seed + 10 * at), seconds=seconds, strategy=name, seed=seed)
        for at, (name, (share, seconds)) in enumerate(shares.items())
        for seed in (0, 1)
    ]


def pair_of(told, *names):
    return next(pair for pair in told["pairs"] if {pair["a"], pair["b"]} == set(names))


def test_runs_become_arms_pairs_and_advice(three_strategies):
    told = compare_runs(three_strategies).to_json()
    assert (told["split"], told["images"]) == ("test", IMAGES)
    assert [(arm["arm"], arm["seeds"], arm["trained_stages"]) for arm in told["arms"]] == [
        ("Feature extraction", [0, 1], 1),
        ("Last block", [0, 1], 2),
        ("Everything", [0, 1], 4),
    ]
    assert [run["run_id"] for run in told["runs"]] == [run.run_id for run in three_strategies]
    assert pair_of(told, "Last block", "Everything")["different"]
    assert not pair_of(told, "Last block", "Feature extraction")["different"]
    assert told["advised"] == "Feature extraction"
    assert told["verdict"].startswith("Take Feature extraction (")
    assert "the cheapest that cannot be told from the best on these 540 images" in told["verdict"]
    for pair in told["pairs"]:
        assert pair["ci_low"] <= pair["difference"] <= pair["ci_high"]
        assert pair["holm_p"] >= pair["p"]
    json.dumps(told, allow_nan=False)


def test_verdicts_say_by_how_much_on_how_many_images_or_what_would_not_have_shown(three_strategies):
    told = compare_runs(three_strategies).to_json()
    better = pair_of(told, "Feature extraction", "Everything")
    assert better["verdict"].startswith("Feature extraction beats Everything by ")
    assert f"by {abs(better['difference']) * 100:.1f} points (" in better["verdict"]
    assert better["verdict"].endswith(" on these 540 images.")
    alike = pair_of(told, "Feature extraction", "Last block")
    assert "are not distinguishable on these 540 images; a difference under " in alike["verdict"]
    assert f"under {alike['smallest_seen'] * 100:.1f} points" in alike["verdict"]


def test_with_one_seed_the_claim_is_about_the_networks(made_run):
    a, b = right(0.9), right(0.8, 1)
    compared = compare_runs([made_run(a, strategy="last_block"), made_run(b, strategy="full")])
    pair = compared.to_json()["pairs"][0]
    assert pair["about"] == "networks"
    assert pair["mcnemar_p"] == pytest.approx(mcnemar_p(a, b))
    assert "one seed says nothing of other seeds" in pair["verdict"]
    assert "for these networks only" in compared.verdict
    assert any("One seed only: Last block and Everything" in note for note in compared.notes)


def test_so_few_images_advise_nothing(made_run):
    runs = [made_run(np.arange(12) < n, strategy=name) for n, name in ((9, "last_block"), (8, "full"))]
    assert compare_runs(runs).verdict.startswith("Too little to choose by")


@pytest.mark.parametrize("other", [{"names": "other"}, {"classes": ("dog", "cat")}, {"data": "/elsewhere"}, {"images": 300}])
def test_runs_on_different_images_are_refused_by_name(made_run, other):
    one = made_run(right(0.9))
    two = made_run(right(0.9)[: other.pop("images", IMAGES)], strategy="full", **other)
    with pytest.raises(RunError, match=f"did not use the same images.*{two.run_id}"):
        compare_runs([one, two])


def test_without_test_images_of_all_the_validation_images_are_used_and_that_is_said(made_run):
    """A run that was stopped has looked at no test image."""
    stopped = made_run(right(0.8), strategy="full", tested=False, status="stopped")
    compared = compare_runs([made_run(right(0.9)), stopped])
    assert (compared.split, compared.images) == ("val", IMAGES)
    assert "optimistic" in compared.notes[0]
    assert any("Did not train to the end" in note and stopped.run_id in note for note in compared.notes)


def test_the_same_seed_again_is_no_second_seed(made_run):
    first, again, other = made_run(right(0.9)), made_run(right(0.9)), made_run(right(0.8), strategy="full")
    compared = compare_runs([first, again, other])
    assert [len(arm.members) for arm in compared.arms] == [1, 1]
    assert any(first.run_id in note and "later run has the same settings" in note for note in compared.notes)


def test_one_strategy_alone_is_told_with_its_spread(made_run):
    compared = compare_runs([made_run(right(0.9, seed), seed=seed) for seed in (0, 1, 2)])
    assert compared.pairs == ()
    assert "over 3 seeds" in compared.verdict


def test_costs_come_from_the_folder(made_run):
    run = made_run(right(0.9), seconds=12.0)
    told = cost(run)
    assert (told.seconds, told.memory_bytes, told.disk_bytes, told.trainable_parameters) == (12.0, 7, 1000, 100)
    assert told.uncached_seconds == pytest.approx(12.0 + 2 * 250 * 0.1 - 2.0)
    assert [row["seconds"] for row in timeline(run)] == [5.0, 7.0]
    assert cost(made_run(right(0.9), strategy="full")).uncached_seconds is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"strategy": "last_block"}, (2, "block2", True)),
        ({"strategy": "full"}, (4, "stem", True)),
        ({"strategy": "custom", "cut": "block1"}, (3, "block1", True)),
        ({"strategy": "bias_only"}, (4, "stem", False)),
        ({"strategy": "first_block"}, (4, "stem", False)),
    ],
)
def test_depth_of_the_cut(made_run, settings, expected):
    told = depth(made_run(right(0.9), **settings))
    assert (told.trained_stages, told.first_stage, told.whole) == expected


def test_titles_say_what_tells_the_arms_apart_and_no_more():
    def titles(*settings):
        return arm_titles([make_config({"data": "x"} | one) for one in settings])

    full = {"strategy": "full"}
    assert titles({}, full | {"learning_rate": 0.1}) == ["Last block", "Everything"]
    assert titles({"learning_rate": 0.1}, {"learning_rate": 0.01}) == [
        "Last block · learning rate 0.1",
        "Last block · learning rate 0.01",
    ]
    assert titles({"backbone": "resnet18"}, {"train_fraction": 0.25}) == [
        "Last block · resnet18 · 100 % of the data",
        "Last block · efficientnet_lite0 · 25 % of the data",
    ]
    assert titles({"strategy": "custom", "cut": "layer3"}) == ["Custom from layer3 on"]


def test_the_report_is_one_file_that_asks_for_nothing_and_takes_nothing_for_markup(made_run):
    nasty = "</script><img src=x onerror=alert(1)>"
    runs = [made_run(right(0.9)), made_run(right(0.8), weights=nasty)]
    compared = compare_runs(runs)
    assert nasty in compared.arms[1].title
    page = report_html(compared, comparison_figures(compared))
    assert nasty not in page
    assert "<img src=x" not in page
    assert "Content-Security-Policy" in page
    own = page.replace("https://plot.ly", "")
    assert 'src="http' not in own
    assert "<link" not in own
    assert page.count("Plotly.newPlot(") >= len(comparison_figures(compared))
    assert "beats" in page
