"""What a comparison says: about strategies, about networks, and of runs that were stopped."""

from dataclasses import replace

import numpy as np
import pytest

from finetune_core.evaluation.comparison.arms import run_titles
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.paired import mcnemar_p
from finetune_core.figures.report import whole_report
from tests.evaluation.simulated import pair_of, right


def test_verdicts_say_by_how_much_on_how_many_images_or_what_would_not_have_shown(three_strategies):
    result = compare_runs(three_strategies).to_json()
    better = pair_of(result, "Feature extraction", "Full fine-tuning")
    by = f"by {abs(better['difference']) * 100:.1f} points ("
    assert better["strategies"]["verdict"].startswith(f"“Feature extraction” beats “Full fine-tuning” {by}")
    assert better["networks"]["verdict"].startswith(
        f"the 2 networks of “Feature extraction” beat the 2 networks of “Full fine-tuning” {by}"
    )
    assert better["verdict"] == f"Strategies: {better['strategies']['verdict']} Networks: {better['networks']['verdict']}"
    assert better["verdict"].endswith(" on these 540 images.")
    alike = pair_of(result, "Feature extraction", "Last block")
    assert "are not distinguishable on these 540 images; a difference under " in alike["verdict"]
    assert f"under {alike['smallest_seen'] * 100:.1f} points" in alike["verdict"]


def test_each_arm_is_told_beside_the_one_to_take(three_strategies):
    compared = compare_runs(three_strategies)
    assert [(compared.arms[one.arm].title, one.kind) for one in compared.arm_verdicts] == [
        ("Feature extraction", "taken"),
        ("Last block", "alike"),
        ("Full fine-tuning", "worse"),
    ]
    assert compared.arm_verdicts[0].words.endswith(" in 3.0 s per run")
    assert "would most likely not have shown" in compared.arm_verdicts[1].words
    lost = pair_of(compared.to_json(), "Feature extraction", "Full fine-tuning")
    assert f"{abs(lost['difference']) * 100:.1f} points worse" in compared.arm_verdicts[2].words


def test_what_another_arm_beats_is_not_advised_however_cheap(made_run):
    """The best varies so much by its seed that it cannot be distinguished from the cheap one; the middle one can."""
    cheap, middle = right(0.83), right(0.86)
    swinging = [right(share) for share in (0.84, 0.92, 0.87, 0.90, 0.85)]
    runs = [made_run(cheap, seconds=1.0, seed=seed) for seed in range(5)]
    runs += [made_run(middle, seconds=5.0, strategy="last_two_blocks", seed=seed) for seed in range(5)]
    runs += [made_run(side, seconds=9.0, strategy="full", seed=seed) for seed, side in enumerate(swinging)]
    compared = compare_runs(runs)
    result = compared.to_json()
    assert compared.arms[compared.best].title == "Full fine-tuning"
    assert not pair_of(result, "Full fine-tuning", "Last block")["different"]
    assert pair_of(result, "Last two blocks", "Last block")["different"]
    assert compared.arms[compared.advised].title == "Last two blocks"


def test_with_one_seed_only_the_networks_can_be_judged(made_run):
    a, b = right(0.9), right(0.8, 1)
    compared = compare_runs([made_run(a, strategy="last_block"), made_run(b, strategy="full")])
    pair = compared.to_json()["pairs"][0]
    assert (pair["about"], pair["strategies"]) == ("networks", None)
    assert pair["networks"]["different"]
    assert [pair["mcnemar_p"], pair["networks"]["p"]] == pytest.approx([mcnemar_p(a[None], b[None])[0, 0]] * 2)
    assert compared.headline == (
        "The strategies cannot be compared yet on these 540 images: “Last block” and “Full fine-tuning” have one seed only."
    )
    assert "Train at least one more seed of “Last block” and “Full fine-tuning”" in compared.caveat
    assert compared.networks.startswith(
        "The networks trained here: the network of “Last block” beats the network of “Full fine-tuning” by "
    )
    assert compared.advised is None
    assert [(one.about, one.kind) for one in compared.arm_verdicts] == [("networks", "best"), ("networks", "worse")]
    assert any("Three seeds or more" in note for note in compared.notes)


def test_many_strategies_of_one_seed_each_are_not_all_named(made_run):
    names = ("feature_extraction", "last_block", "full")
    compared = compare_runs([made_run(right(0.9, seed), strategy=name) for seed, name in enumerate(names)])
    assert compared.headline == "The strategies cannot be compared yet on these 540 images: each has one seed only."
    assert compared.caveat == "Train at least one more seed of each, better two."


def answers_with(wrong, images=600):
    """Right on all images but these."""
    correct = np.ones(images, bool)
    correct[wrong] = False
    return correct


@pytest.fixture
def frozen_and_full(made_run):
    """Two runs of feature extraction, and two of everything: 3.7 points worse with its first seed, 4.1 with both."""
    wrong = {
        "feature_extraction": (range(48), range(30)),
        "full": ([*range(24), *range(100, 137)], [*range(24), *range(105, 147)]),
    }
    return [
        [made_run(answers_with([*some]), strategy=strategy, seed=seed) for seed, some in enumerate(sets)]
        for strategy, sets in wrong.items()
    ]


def test_a_second_seed_does_not_turn_the_verdict_round(frozen_and_full):
    """Before, the headline went from ``beats by 3.7 (1.5 to 5.9)``, about networks, to ``not distinguishable``, about strategies."""
    frozen, (first, second) = frozen_and_full
    before, after = compare_runs([*frozen, first]), compare_runs([*frozen, first, second])
    earlier, later = (one.to_json()["pairs"][0] for one in (before, after))
    assert [earlier["difference"], later["difference"]] == pytest.approx([0.0367, 0.0408], abs=1e-4)
    assert earlier["networks"]["different"]
    assert later["networks"]["different"]
    assert later["networks"]["p"] <= earlier["networks"]["p"]
    assert (
        "the 2 networks of “Feature extraction” beat the network of “Full fine-tuning” by 3.7 points (1.5 to 5.9)"
        in before.networks
    )
    assert "the 2 networks of “Feature extraction” beat the 2 networks of “Full fine-tuning” by 4.1 points" in after.networks
    assert earlier["strategies"] is None
    assert before.headline == "The strategies cannot be compared yet on these 600 images: “Full fine-tuning” has one seed only."
    assert not later["strategies"]["different"]
    assert later["strategies"]["smallest_seen"] < 0.15
    assert later["seed_error"] > later["image_error"], "the seeds are why"
    assert f"{later['seeds_needed']} seeds of each would most likely show it" in later["strategies"]["verdict"]
    assert "beats" not in before.headline + before.caveat + after.headline + after.caveat


def test_more_evidence_in_the_same_direction_never_takes_the_claim_about_networks_back(made_run):
    """Each further seed is better, or worse, by as much as those before: whatever becomes of the strategies, of which each headline speaks,
    what is said of the networks stays."""
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
    assert all("strategies cannot be compared yet" in one.headline for one in said[:2])
    assert all("beat" in one.networks and "not distinguishable" not in one.networks for one in said)


def test_with_one_arm_of_a_single_seed_the_others_are_judged_as_strategies(three_strategies, made_run):
    single = made_run(right(0.95, 5), strategy="last_two_blocks", seconds=30.0)
    comparison = compare_runs([*three_strategies, single])
    assert comparison.headline.startswith("Take “Feature extraction”")
    assert "“Last two blocks” has one seed only, so this strategy cannot be compared yet." in comparison.caveat
    kinds = {comparison.arms[one.arm].title: (one.about, one.kind) for one in comparison.arm_verdicts}
    assert kinds["Last two blocks"] == ("networks", "better")
    assert kinds["Full fine-tuning"] == ("strategies", "worse")


def test_so_few_images_advise_nothing(made_run):
    runs = [
        made_run(np.arange(12) < n - seed, strategy=name, seed=seed)
        for n, name in ((9, "last_block"), (8, "full"))
        for seed in (0, 1)
    ]
    compared = compare_runs(runs)
    assert compared.headline == "Too little evidence to choose on these 12 images."
    assert "would hardly show. “Last block” did best so far." in compared.caveat
    assert [one.kind for one in compared.arm_verdicts] == ["best", "alike"]
    assert compared.to_json()["advised"] is None


def test_more_of_what_the_larger_error_comes_from_is_advised(made_run):
    """Seeds 20 points apart on 2,000 images are no reason to look for more images."""
    order = np.random.default_rng(0).permutation(2000)
    swinging = [(1300, "last_block", 0), (1700, "last_block", 1), (1250, "full", 0), (1600, "full", 1)]
    compared = compare_runs([made_run(order < n, strategy=name, seed=seed) for n, name, seed in swinging])
    pair = compared.to_json()["pairs"][0]
    assert pair["seed_error"] > pair["image_error"]
    assert "Most of the uncertainty comes from the seeds" in compared.caveat
    assert "train more seeds" in compared.caveat
    assert "images." not in compared.caveat.split("train more seeds")[1]
    few = compare_runs(
        [
            made_run(np.arange(12) < n, strategy=name, seed=seed)
            for n, name in ((9, "last_block"), (8, "full"))
            for seed in (0, 1)
        ]
    )
    assert "Most of the uncertainty comes from the images" in few.caveat
    assert "evaluate on more images" in few.caveat


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
    assert compared.headline.startswith("The strategies cannot be compared yet")
    assert "Resume what did not train to the end." in compared.caveat
    assert "stopped after 2 of 10 epochs" in whole_report(compared)
    titles = run_titles([*finished, same, stopped])
    assert len(set(titles)) == 4
    assert [("stopped" in title) for title in titles] == [False, False, True, True]


def test_a_stopped_run_changes_nothing_of_what_is_said_of_the_strategies(three_strategies, made_run):
    """It cannot be judged as one, so nothing is corrected for it."""
    alone = compare_runs(three_strategies)
    stopped = [made_run(right(share), seed=seed, status="stopped") for seed, share in ((7, 0.3), (8, 0.8))]
    beside = compare_runs([*three_strategies, *stopped])
    assert beside.headline == alone.headline
    assert [pair.strategies for pair in beside.pairs if pair.strategies] == [pair.strategies for pair in alone.pairs]
    assert {pair.networks.family for pair in beside.pairs} == {6}


def test_runs_of_equal_settings_and_seed_have_titles_of_their_own(made_run):
    runs = [made_run(right(0.9), status=status) for status in ("stopped", "stopped", "finished")]
    twins = [replace(run, run_dir=run.run_dir.with_name(f"{run.run_id[:-4]}{n:04x}")) for n, run in enumerate(runs)]
    assert len(set(run_titles(twins))) == 3


def test_stopped_runs_of_many_seeds_say_so(made_run):
    compared = compare_runs([made_run(right(0.9, seed), seed=seed, status="stopped") for seed in (0, 1)])
    assert compared.headline.startswith("These runs differ in their seeds only (all stopped after 2 of 10 epochs): ")


def test_runs_of_one_strategy_are_compared_with_each_other(made_run):
    compared = compare_runs([made_run(right(0.9, seed), seed=seed) for seed in (0, 1, 2)])
    assert [arm.title for arm in compared.arms] == [f"Last block · seed {seed}" for seed in (0, 1, 2)]
    assert len(compared.pairs) == 3
    assert compared.verdict.startswith("These runs differ in their seeds only: ")
    assert "no two can be told apart" in compared.verdict
    assert compared.arm_verdicts == ()
    assert compared.advised is None


def test_one_strategy_alone_is_not_the_one_to_take(made_run):
    compared = compare_runs([made_run(right(0.9))])
    assert (compared.pairs, compared.arm_verdicts, compared.advised, compared.networks) == ((), (), None, "")
    assert "Add another strategy" in compared.verdict
    assert "Take this one" not in whole_report(compared)
    assert "★" not in whole_report(compared)
