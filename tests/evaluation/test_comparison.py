import json

import numpy as np
import pytest

from finetune_core.config import make_config
from finetune_core.errors import RunError
from finetune_core.evaluation.arms import arm_titles
from finetune_core.evaluation.comparison import compare_runs
from finetune_core.evaluation.costs import cost, run_depth, timeline, trunk_rate, usual_cost
from finetune_core.evaluation.paired import mcnemar_p
from finetune_core.figures.report import comparison_figures, whole_report

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
    assert told["verdict"] == (
        "Take “Feature extraction”: the cheapest that cannot be told apart from the best, “Last block”, on these 540 images."
    )
    for pair in told["pairs"]:
        assert pair["ci_low"] <= pair["difference"] <= pair["ci_high"]
        assert pair["holm_p"] >= pair["p"]
    json.dumps(told, allow_nan=False)


def test_verdicts_say_by_how_much_on_how_many_images_or_what_would_not_have_shown(three_strategies):
    told = compare_runs(three_strategies).to_json()
    better = pair_of(told, "Feature extraction", "Everything")
    assert better["verdict"].startswith("“Feature extraction” beats “Everything” by ")
    assert f"by {abs(better['difference']) * 100:.1f} points (" in better["verdict"]
    assert better["verdict"].endswith(" on these 540 images.")
    alike = pair_of(told, "Feature extraction", "Last block")
    assert "are not distinguishable on these 540 images; a difference under " in alike["verdict"]
    assert f"under {alike['smallest_seen'] * 100:.1f} points" in alike["verdict"]


def test_each_arm_is_told_beside_the_one_to_take(three_strategies):
    compared = compare_runs(three_strategies)
    assert [(compared.arms[one.arm].title, one.kind) for one in compared.standings] == [
        ("Feature extraction", "taken"),
        ("Last block", "alike"),
        ("Everything", "worse"),
    ]
    assert compared.standings[0].words.endswith(" in 3.0 s a run")
    assert "would most likely not have shown" in compared.standings[1].words
    lost = pair_of(compared.to_json(), "Feature extraction", "Everything")
    assert f"{abs(lost['difference']) * 100:.1f} points worse" in compared.standings[2].words


def test_what_another_arm_beats_is_not_advised_however_cheap(made_run):
    """The best varies so much by its seed that it cannot be told from the cheap one; the middle one can."""
    cheap, middle = right(0.80), right(0.86)
    swinging = (right(0.80), right(0.99), right(0.86))
    runs = [made_run(cheap, seconds=1.0, seed=seed) for seed in (0, 1, 2)]
    runs += [made_run(middle, seconds=5.0, strategy="last_two_blocks", seed=seed) for seed in (0, 1, 2)]
    runs += [made_run(side, seconds=9.0, strategy="full", seed=seed) for seed, side in enumerate(swinging)]
    compared = compare_runs(runs)
    told = compared.to_json()
    assert compared.arms[compared.best].title == "Everything"
    assert not pair_of(told, "Everything", "Last block")["different"]
    assert pair_of(told, "Last two blocks", "Last block")["different"]
    assert compared.arms[compared.advised].title == "Last two blocks"


def test_with_one_seed_the_claim_is_about_the_networks(made_run):
    a, b = right(0.9), right(0.8, 1)
    compared = compare_runs([made_run(a, strategy="last_block"), made_run(b, strategy="full")])
    pair = compared.to_json()["pairs"][0]
    assert pair["about"] == "networks"
    assert pair["mcnemar_p"] == pytest.approx(mcnemar_p(a, b))
    assert "one seed says nothing of other seeds" in pair["verdict"]
    assert "“Last block” and “Everything” had one seed only: that holds for the networks trained here" in compared.verdict
    assert any("Three seeds or more" in note for note in compared.notes)


def test_so_few_images_advise_nothing(made_run):
    runs = [made_run(np.arange(12) < n, strategy=name) for n, name in ((9, "last_block"), (8, "full"))]
    compared = compare_runs(runs)
    assert compared.verdict.startswith("Too little to choose by on these 12 images. Differences under ")
    assert [one.kind for one in compared.standings] == ["best", "alike"]
    assert compared.to_json()["advised"] is None


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
    assert "Did not train to the end: Everything, seed 0." in compared.notes


def test_the_same_seed_again_is_no_second_seed(made_run):
    first, again, other = made_run(right(0.9)), made_run(right(0.9)), made_run(right(0.8), strategy="full")
    compared = compare_runs([first, again, other])
    assert [len(arm.members) for arm in compared.arms] == [1, 1]
    assert any(first.run_id in note and "later run has the same settings" in note for note in compared.notes)


def test_runs_of_one_strategy_are_compared_with_each_other(made_run):
    compared = compare_runs([made_run(right(0.9, seed), seed=seed) for seed in (0, 1, 2)])
    assert [arm.title for arm in compared.arms] == [f"Last block · seed {seed}" for seed in (0, 1, 2)]
    assert len(compared.pairs) == 3
    assert compared.verdict.startswith("These runs differ in their seeds only: ")
    assert "no two can be told apart" in compared.verdict
    assert compared.standings == ()


def test_one_run_alone_has_no_pairs(made_run):
    compared = compare_runs([made_run(right(0.9))])
    assert compared.pairs == ()
    assert "Add another strategy" in compared.verdict


def test_costs_come_from_the_folder(made_run):
    run = made_run(right(0.9), seconds=12.0)
    told = cost(run, 0.1)
    assert (told.seconds, told.memory_bytes, told.disk_bytes, told.trainable_parameters) == (12.0, 7, 1000, 100)
    assert told.uncached_seconds == pytest.approx(12.0 + 2 * 250 * 0.1 - 2.0)
    assert [row["seconds"] for row in timeline(run)] == [5.0, 7.0]
    assert cost(run).uncached_seconds is None


def test_memory_that_was_used_again_is_told_by_the_forecast(made_run):
    first, second = (made_run(right(0.9), seed=seed, forecast={"memory_bytes": size}) for seed, size in ((0, 5), (1, 900)))
    assert [cost(run).memory_bytes for run in (first, second)] == [7, 900]
    assert usual_cost([cost(first), cost(second)]).memory_bytes == 900


def test_what_the_cache_saved_is_told_by_the_deepest_cut_that_was_timed(made_run):
    head, block = made_run(right(0.9), strategy="feature_extraction"), made_run(right(0.9), trunk_rate=0.1)
    two, full = made_run(right(0.9), strategy="last_two_blocks", trunk_rate=0.05), made_run(right(0.9), strategy="full")
    runs = [head, block, two, full]
    assert [trunk_rate([run], runs) for run in runs] == [0.1, 0.1, 0.05, 0.0]
    assert trunk_rate([head], [head, full]) is None
    assert cost(full, 0.0).uncached_seconds == cost(full, 0.0).seconds


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
    told = run_depth(made_run(right(0.9), **settings))
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
    page = whole_report(compared)
    assert nasty not in page
    assert "<img src=x" not in page
    assert "Content-Security-Policy" in page
    own = page.replace("https://plot.ly", "")
    assert 'src="http' not in own
    assert "<link" not in own
    assert page.count("Plotly.newPlot(") >= len(comparison_figures(compared))
    assert "beats" in page
