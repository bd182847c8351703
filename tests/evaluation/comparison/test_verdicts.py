"""What a comparison says: about strategies, about networks, and of runs that were stopped."""

from dataclasses import replace

import numpy as np
import pytest

from finetune_core.evaluation.comparison.arms import run_titles
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.paired import mcnemar_p
from finetune_core.figures.report import whole_report
from tests.evaluation.simulated import IMAGES, pair_of, right


def points(value):
    return f"{abs(value) * 100:.1f} points"


def test_verdicts_say_by_how_much_on_how_many_images_or_what_would_not_have_shown(three_strategies):
    compared = compare_runs(three_strategies)
    result = compared.to_json()
    better = pair_of(result, "Feature extraction", "Full fine-tuning")
    by = points(better["difference"])
    for claim, verb in (("strategies", "beats"), ("networks", "beat")):
        words = better[claim]["verdict"]
        parts = ("“Feature extraction”", f" {verb} ", "“Full fine-tuning”", by)
        places = [words.index(part) for part in parts]
        assert places == sorted(places)
        assert f" {IMAGES} images" in words
        assert words in better["verdict"]
    alike = pair_of(result, "Feature extraction", "Last block")
    assert not alike["different"]
    unseen = f"under {points(alike['smallest_seen'])}"
    assert unseen in alike["verdict"]
    # each arm is described against the one to take
    taken, other, worse = compared.arm_verdicts
    titles = [compared.arms[one.arm].title for one in compared.arm_verdicts]
    assert titles == ["Feature extraction", "Last block", "Full fine-tuning"]
    assert [taken.kind, other.kind, worse.kind] == ["taken", "alike", "worse"]
    assert "3.0 s" in taken.words
    assert unseen in other.words
    assert f"{by} worse" in worse.words


def test_what_another_arm_beats_is_not_advised_however_cheap(made_run):
    """The best varies so much by seed that only the middle one is distinguished from the cheap."""
    swinging = [right(share) for share in (0.84, 0.92, 0.87, 0.90, 0.85)]
    arms = {"last_block": [right(0.83)] * 5, "last_two_blocks": [right(0.86)] * 5, "full": swinging}
    seconds = {"last_block": 1.0, "last_two_blocks": 5.0, "full": 9.0}
    runs = [
        made_run(correct, seconds=seconds[name], strategy=name, seed=seed)
        for name, seeds in arms.items()
        for seed, correct in enumerate(seeds)
    ]
    compared = compare_runs(runs)
    result = compared.to_json()
    assert compared.arms[compared.best].title == "Full fine-tuning"
    assert not pair_of(result, "Full fine-tuning", "Last block")["different"]
    assert pair_of(result, "Last two blocks", "Last block")["different"]
    assert compared.arms[compared.advised].title == "Last two blocks"


def test_with_one_seed_only_the_networks_can_be_compared(made_run):
    a, b = right(0.9), right(0.8, 1)
    compared = compare_runs([made_run(a, strategy="last_block"), made_run(b, strategy="full")])
    pair = compared.to_json()["pairs"][0]
    assert (pair["about"], pair["strategies"]) == ("networks", None)
    assert pair["networks"]["different"]
    assert [pair["mcnemar_p"], pair["networks"]["p"]] == pytest.approx(
        [mcnemar_p(a[None], b[None])[0, 0]] * 2
    )
    assert not any(arm.speaks for arm in compared.arms)
    for words in (compared.headline, compared.caveat, compared.networks):
        assert words.index("“Last block”") < words.index("“Full fine-tuning”")
    assert pair["networks"]["verdict"] in compared.networks
    assert compared.advised is None
    assert [(one.about, one.kind) for one in compared.arm_verdicts] == [
        ("networks", "best"),
        ("networks", "worse"),
    ]
    assert any("Three seeds or more" in note for note in compared.notes)


def test_many_strategies_of_one_seed_each_are_not_all_named(made_run):
    names = ("feature_extraction", "last_block", "full")
    compared = compare_runs(
        [made_run(right(0.9, seed), strategy=name) for seed, name in enumerate(names)]
    )
    assert not any(arm.speaks for arm in compared.arms)
    assert compared.caveat
    assert not any(arm.title in compared.headline + compared.caveat for arm in compared.arms)


def answers_with(wrong, images=600):
    """Right on all images but these."""
    correct = np.ones(images, bool)
    correct[wrong] = False
    return correct


@pytest.fixture
def frozen_and_full(made_run):
    """Two runs each: all layers are 3.7 points worse with the first seed, 4.1 with both."""
    wrong = {
        "feature_extraction": (range(48), range(30)),
        "full": ([*range(24), *range(100, 137)], [*range(24), *range(105, 147)]),
    }
    return [
        [
            made_run(answers_with([*some]), strategy=strategy, seed=seed)
            for seed, some in enumerate(sets)
        ]
        for strategy, sets in wrong.items()
    ]


def test_a_second_seed_does_not_turn_the_verdict_round(frozen_and_full):
    """Once, "beats by 3.7" of networks became "not distinguishable" of strategies."""
    frozen, (first, second) = frozen_and_full
    before, after = compare_runs([*frozen, first]), compare_runs([*frozen, first, second])
    earlier, later = (one.to_json()["pairs"][0] for one in (before, after))
    assert [earlier["difference"], later["difference"]] == pytest.approx([0.0367, 0.0408], abs=1e-4)
    assert earlier["networks"]["different"]
    assert later["networks"]["different"]
    assert later["networks"]["p"] <= earlier["networks"]["p"]
    assert "3.7 points (1.5 to 5.9)" in before.networks
    assert "4.1 points" in after.networks
    assert earlier["strategies"] is None
    assert [arm.title for arm in before.arms if not arm.speaks] == ["Full fine-tuning"]
    assert "“Full fine-tuning”" in before.headline
    assert not later["strategies"]["different"]
    assert later["strategies"]["smallest_seen"] < 0.15
    assert later["seed_error"] > later["image_error"], "the seeds are why"
    assert f" {later['seeds_needed']} seeds " in later["strategies"]["verdict"]
    assert "beats" not in before.headline + before.caveat + after.headline + after.caveat


def test_more_evidence_in_the_same_direction_never_takes_the_claim_about_networks_back(made_run):
    """Each further seed is better, or worse, by as much as those before."""
    random = np.random.default_rng(0)
    ease = random.normal(3.5, 3, 400)

    def run(strategy, seed, gain):
        correct = random.random(400) < 1 / (1 + np.exp(-(ease + gain + random.normal(0, 1, 400))))
        return made_run(correct, strategy=strategy, seed=seed)

    runs = [run("last_block", 0, 1.2), run("full", 0, -0.2)]
    said = []
    for seed in range(4):
        said.append(compare_runs(runs))
        runs += [run("last_block", seed + 1, 1.2)] if seed % 2 else [run("full", seed + 1, -0.2)]
    pairs = [one.to_json()["pairs"][0] for one in said]
    assert all(pair["networks"]["different"] for pair in pairs)
    assert [pair["strategies"] is None for pair in pairs] == [True, True, False, False]
    assert [one.advised is None for one in said[:2]] == [True, True]
    assert all(
        pair["networks"]["verdict"] in one.networks for pair, one in zip(pairs, said, strict=True)
    )


def test_with_one_arm_of_a_single_seed_the_others_are_compared_as_strategies(
    three_strategies, made_run
):
    single = made_run(right(0.95, 5), strategy="last_two_blocks", seconds=30.0)
    comparison = compare_runs([*three_strategies, single])
    assert comparison.arms[comparison.advised].title == "Feature extraction"
    assert "“Feature extraction”" in comparison.headline
    assert "“Last two blocks”" in comparison.caveat
    kinds = {
        comparison.arms[one.arm].title: (one.about, one.kind) for one in comparison.arm_verdicts
    }
    assert kinds["Last two blocks"] == ("networks", "better")
    assert kinds["Full fine-tuning"] == ("strategies", "worse")


def first_right(made_run, images, counts):
    """Return runs of two seeds of each strategy, which are right on so many images."""
    order = np.random.default_rng(0).permutation(images)
    return [
        made_run(order < count, strategy=name, seed=seed)
        for name, seeds in counts.items()
        for seed, count in enumerate(seeds)
    ]


def test_so_few_images_advise_nothing_but_more_images(made_run):
    counts = {"last_block": (9, 8), "full": (8, 7)}
    compared = compare_runs(first_right(made_run, 12, counts))
    assert " 12 images" in compared.headline
    assert compared.arms[compared.best].title == "Last block"
    assert "“Last block”" in compared.caveat
    assert [one.kind for one in compared.arm_verdicts] == ["best", "alike"]
    assert compared.to_json()["advised"] is None
    same = {"last_block": (9, 9), "full": (8, 8)}
    few = compare_runs(first_right(made_run, 12, same)).caveat
    assert "Most of the uncertainty comes from the images" in few
    assert "evaluate on more images" in few


def test_seeds_that_are_far_apart_on_many_images_ask_for_more_seeds_only(made_run):
    counts = {"last_block": (1300, 1700), "full": (1250, 1600)}
    compared = compare_runs(first_right(made_run, 2000, counts))
    pair = compared.to_json()["pairs"][0]
    assert pair["seed_error"] > pair["image_error"]
    assert "Most of the uncertainty comes from the seeds" in compared.caveat
    assert "images." not in compared.caveat.split("train more seeds")[1]


@pytest.mark.train
def test_a_stopped_run_is_no_seed_of_its_strategy(made_run):
    """Nor do the runs of an arm differ in their seeds only, where one was stopped."""
    finished = [made_run(right(0.9, seed), seed=seed) for seed in (0, 1)]
    stopped = made_run(right(0.7), seed=1, status="stopped", epochs=20)
    same = made_run(right(0.7), seed=1, status="stopped")
    compared = compare_runs([*finished, same])
    assert [(arm.title, len(arm.members)) for arm in compared.arms] == [
        ("Last block", 2),
        ("Last block · stopped after 2 of 10 epochs", 1),
    ]
    assert "differ in their seeds only" not in compared.verdict
    assert [arm.speaks for arm in compared.arms] == [True, False]
    assert compared.advised is None
    assert "Resume" in compared.caveat
    assert "stopped after 2 of 10 epochs" in whole_report(compared)
    titles = run_titles([*finished, same, stopped])
    assert len(set(titles)) == 4
    assert [("stopped" in title) for title in titles] == [False, False, True, True]


def test_a_stopped_run_changes_nothing_of_what_is_said_of_the_strategies(
    three_strategies, made_run
):
    """It cannot be compared as one, so nothing is corrected for it."""
    alone = compare_runs(three_strategies)
    stopped = [
        made_run(right(share), seed=seed, status="stopped") for seed, share in ((7, 0.3), (8, 0.8))
    ]
    beside = compare_runs([*three_strategies, *stopped])
    assert beside.headline == alone.headline
    assert [pair.strategies for pair in beside.pairs if pair.strategies] == [
        pair.strategies for pair in alone.pairs
    ]
    assert {pair.networks.family for pair in beside.pairs} == {6}


def test_runs_of_equal_settings_and_seed_have_titles_of_their_own(made_run):
    runs = [made_run(right(0.9), status=status) for status in ("stopped", "stopped", "finished")]
    twins = [
        replace(run, run_dir=run.run_dir.with_name(f"{run.run_id[:-4]}{n:04x}"))
        for n, run in enumerate(runs)
    ]
    assert len(set(run_titles(twins))) == 3


def test_stopped_runs_of_many_seeds_say_so(made_run):
    compared = compare_runs(
        [made_run(right(0.9, seed), seed=seed, status="stopped") for seed in (0, 1)]
    )
    assert [arm.unfinished for arm in compared.arms] == ["stopped after 2 of 10 epochs"] * 2
    assert compared.headline.count("stopped after 2 of 10 epochs") == 1


def test_runs_of_one_strategy_are_compared_with_each_other(made_run):
    compared = compare_runs([made_run(right(0.9, seed), seed=seed) for seed in (0, 1, 2)])
    assert [arm.title for arm in compared.arms] == [
        f"Last block · seed {seed}" for seed in (0, 1, 2)
    ]
    assert len(compared.pairs) == 3
    assert not any(pair.networks.different for pair in compared.pairs)
    assert "seeds" in compared.verdict
    assert compared.arm_verdicts == ()
    assert compared.advised is None


@pytest.mark.train
def test_one_strategy_alone_is_not_the_one_to_take(made_run):
    compared = compare_runs([made_run(right(0.9))])
    assert compared.pairs == compared.arm_verdicts == ()
    assert (compared.advised, compared.networks) == (None, "")
    assert "Add another strategy" in compared.verdict
    assert "Take this one" not in whole_report(compared)
    assert "★" not in whole_report(compared)
