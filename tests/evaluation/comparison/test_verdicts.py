"""Verdict in three lines, claims about pairs, and stopped runs."""

from dataclasses import replace

import numpy as np
import pytest

from finetune_core.evaluation.comparison.arms import run_titles
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.paired import mcnemar_p, summarize_accuracy
from finetune_core.evaluation.comparison.pairs import compare_pairs, pool_seed_variances
from finetune_core.formatting import format_percent
from finetune_core.reports.build import build_report
from finetune_core.reports.html import comparison_html, detail_lines
from finetune_core.runs.convergence import Convergence
from tests.evaluation.simulated import IMAGES, draw_correct, find_pair


def format_points(value):
    return f"{abs(value) * 100:.1f} points"


def test_verdicts_say_by_how_much_on_how_many_images_or_what_would_not_have_shown(three_strategies):
    compared = compare_runs(three_strategies)
    result = compared.to_json()
    better = find_pair(result, "Feature extraction", "Full fine-tuning")
    by = format_points(better["difference"])
    for claim in ("strategies", "networks"):
        words = better[claim]["verdict"]
        parts = ("“Feature extraction”", " beats ", "“Full fine-tuning”", by, "95 % CI")
        places = [words.index(part) for part in parts]
        assert places == sorted(places)
        assert f" {IMAGES} images" in words
        assert words in better["verdict"]
    alike = find_pair(result, "Feature extraction", "Last block")
    assert not alike["different"]
    unseen = f"under {format_points(alike['smallest_seen'])}"
    assert unseen in alike["verdict"]
    # each arm is described against the one to take
    taken, other, worse = compared.arm_verdicts
    titles = [compared.arms[one.arm].title for one in compared.arm_verdicts]
    assert titles == ["Feature extraction", "Last block", "Full fine-tuning"]
    assert [taken.kind, other.kind, worse.kind] == ["taken", "alike", "worse"]
    assert taken.text == ""
    assert unseen in other.text
    assert worse.text.startswith(f"{by} (95 % CI ")


def test_what_another_arm_beats_is_not_advised_however_cheap(make_run):
    """The best varies so much by seed that only the middle arm differs from the cheap one."""
    swinging = [draw_correct(share) for share in (0.84, 0.92, 0.87, 0.90, 0.85)]
    arms = {
        "last_block": [draw_correct(0.83)] * 5,
        "last_two_blocks": [draw_correct(0.86)] * 5,
        "full": swinging,
    }
    seconds = {"last_block": 1.0, "last_two_blocks": 5.0, "full": 9.0}
    runs = [
        make_run(correct, seconds=seconds[name], strategy=name, seed=seed)
        for name, seeds in arms.items()
        for seed, correct in enumerate(seeds)
    ]
    compared = compare_runs(runs)
    result = compared.to_json()
    assert compared.arms[compared.best].title == "Full fine-tuning"
    assert not find_pair(result, "Full fine-tuning", "Last block")["different"]
    assert find_pair(result, "Last two blocks", "Last block")["different"]
    assert compared.arms[compared.advised].title == "Last two blocks"


def test_with_one_seed_only_the_networks_can_be_compared(make_run):
    a, b = draw_correct(0.9), draw_correct(0.8, 1)
    compared = compare_runs([make_run(a, strategy="last_block"), make_run(b, strategy="full")])
    pair = compared.to_json()["pairs"][0]
    assert (pair["about"], pair["strategies"]) == ("networks", None)
    assert pair["networks"]["different"]
    assert [pair["mcnemar_p"], pair["networks"]["p"]] == pytest.approx(
        [mcnemar_p(a[None], b[None])[0, 0]] * 2
    )
    assert not any(arm.supports_claims for arm in compared.arms)
    gain = format_points(pair["difference"])
    assert compared.verdict.answer.startswith(
        "Of these trained models, last block is best on 540 images: test accuracy "
    )
    assert compared.verdict.answer.endswith(" for full fine-tuning.")
    assert compared.verdict.size.startswith(f"Difference {gain} (95 % CI ")
    assert compared.verdict.action.startswith("Train more seeds")
    assert compared.advised is compared.optimism is None
    assert compared.footnote == ""
    assert [(one.about, one.kind) for one in compared.arm_verdicts] == [
        ("networks", "best"),
        ("networks", "worse"),
    ]
    assert any("Three seeds or more" in note for note in compared.notes)


def test_many_strategies_of_one_seed_each_are_not_all_named(make_run):
    names = ("feature_extraction", "last_block", "full")
    compared = compare_runs(
        [make_run(draw_correct(0.9, seed), strategy=name) for seed, name in enumerate(names)]
    )
    assert not any(arm.supports_claims for arm in compared.arms)
    assert compared.verdict.answer.startswith("No clear winner among these trained models on 540 ")
    assert not any(arm.title in compared.verdict.action for arm in compared.arms)


def make_correct(wrong, images=600):
    """Return bool ``[images]``: right on all images but these."""
    correct = np.ones(images, bool)
    correct[wrong] = False
    return correct


@pytest.fixture
def frozen_and_full(make_run):
    """Make two runs each: all layers are 3.7 points worse with the first seed, 4.1 with both."""
    wrong = {
        "feature_extraction": (range(48), range(30)),
        "full": ([*range(24), *range(100, 137)], [*range(24), *range(105, 147)]),
    }
    return [
        [
            make_run(make_correct([*some]), strategy=strategy, seed=seed)
            for seed, some in enumerate(sets)
        ]
        for strategy, sets in wrong.items()
    ]


def test_a_second_seed_does_not_turn_the_verdict_round(frozen_and_full):
    """ "Beats by 3.7" of networks once became "not distinguishable" of strategies."""
    frozen, (first, second) = frozen_and_full
    before, after = compare_runs([*frozen, first]), compare_runs([*frozen, first, second])
    earlier, later = (one.to_json()["pairs"][0] for one in (before, after))
    assert [earlier["difference"], later["difference"]] == pytest.approx([0.0367, 0.0408], abs=1e-4)
    assert earlier["networks"]["different"]
    assert later["networks"]["different"]
    assert later["networks"]["p"] <= earlier["networks"]["p"]
    assert before.verdict.size == "Difference 3.7 points (95 % CI 1.5 to 5.9)."
    assert "4.1 points" in after.verdict.size
    assert earlier["strategies"] is None
    assert [arm.title for arm in before.arms if not arm.supports_claims] == ["Full fine-tuning"]
    assert before.verdict.action.startswith("Train more seeds")
    assert not later["strategies"]["different"]
    assert later["strategies"]["smallest_seen"] < 0.15
    assert later["seed_error"] > later["image_error"], "the seeds are why"
    assert f" {later['seeds_needed']} seeds " in later["strategies"]["verdict"]
    assert before.verdict.answer.startswith("Of these trained models, feature extraction is best")
    assert "is best" not in after.verdict.answer


def test_more_evidence_in_the_same_direction_never_takes_the_claim_about_networks_back(make_run):
    """Each further seed is better, or worse, by as much as those before."""
    random = np.random.default_rng(0)
    ease = random.normal(3.5, 3, 400)

    def run(strategy, seed, gain):
        correct = random.random(400) < 1 / (1 + np.exp(-(ease + gain + random.normal(0, 1, 400))))
        return make_run(correct, strategy=strategy, seed=seed)

    runs = [run("last_block", 0, 1.2), run("full", 0, -0.2)]
    said = []
    for seed in range(4):
        said.append(compare_runs(runs))
        runs += [run("last_block", seed + 1, 1.2)] if seed % 2 else [run("full", seed + 1, -0.2)]
    pairs = [one.to_json()["pairs"][0] for one in said]
    assert all(pair["networks"]["different"] for pair in pairs)
    assert [pair["strategies"] is None for pair in pairs] == [True, True, False, False]
    assert [one.advised is None for one in said[:2]] == [True, True]
    assert all("Of these trained models" in one.verdict.answer for one in said[:2])
    assert all("last block is best" in str(one.verdict).lower() for one in said[:2])


def test_with_one_arm_of_a_single_seed_the_others_are_compared_as_strategies(
    three_strategies, make_run
):
    single = make_run(draw_correct(0.95, 5), strategy="last_two_blocks", seconds=30.0)
    comparison = compare_runs([*three_strategies, single])
    assert comparison.arms[comparison.advised].title == "Feature extraction"
    assert " for feature extraction, " in comparison.verdict.answer
    assert "Train more seeds of last two blocks to compare it, too." in comparison.verdict.action
    kinds = {
        comparison.arms[one.arm].title: (one.about, one.kind) for one in comparison.arm_verdicts
    }
    assert kinds["Last two blocks"] == ("networks", "better")
    assert kinds["Full fine-tuning"] == ("strategies", "worse")


def make_runs_by_count(make_run, images, counts):
    """Make runs of two seeds of each strategy, right on that number of images."""
    order = np.random.default_rng(0).permutation(images)
    return [
        make_run(order < count, strategy=name, seed=seed)
        for name, seeds in counts.items()
        for seed, count in enumerate(seeds)
    ]


def test_so_few_images_advise_nothing_but_more_images(make_run):
    counts = {"last_block": (9, 8), "full": (8, 7)}
    compared = compare_runs(make_runs_by_count(make_run, 12, counts))
    assert compared.verdict.answer.startswith("No clear winner on 12 images: test accuracy 70.8 %")
    assert compared.arms[compared.best].title == "Last block"
    assert [one.kind for one in compared.arm_verdicts] == ["best", "alike"]
    assert compared.to_json()["advised"] is None
    same = {"last_block": (9, 9), "full": (8, 8)}
    few = compare_runs(make_runs_by_count(make_run, 12, same)).verdict
    assert few.action.startswith("Test more images: ")
    assert few.action.endswith(" would show 5.0 points.")


def test_seeds_that_are_far_apart_on_many_images_ask_for_more_seeds_only(make_run):
    counts = {"last_block": (1300, 1700), "full": (1250, 1600)}
    compared = compare_runs(make_runs_by_count(make_run, 2000, counts))
    pair = compared.to_json()["pairs"][0]
    assert pair["seed_error"] > pair["image_error"]
    assert compared.verdict.action.startswith("Train more seeds")
    assert "images" not in compared.verdict.action


@pytest.mark.train
def test_a_stopped_run_is_no_seed_of_its_strategy(make_run):
    """The runs of an arm differ in more than their seeds if one was stopped."""
    finished = [make_run(draw_correct(0.9, seed), seed=seed) for seed in (0, 1)]
    stopped = make_run(draw_correct(0.7), seed=1, status="stopped", epochs=20)
    same = make_run(draw_correct(0.7), seed=1, status="stopped")
    compared = compare_runs([*finished, same])
    assert [(arm.title, len(arm.members)) for arm in compared.arms] == [
        ("Last block", 2),
        ("Last block · stopped after 2 of 10 epochs", 1),
    ]
    assert "One strategy" not in compared.verdict.answer
    assert [arm.supports_claims for arm in compared.arms] == [True, False]
    assert compared.advised is None
    assert compared.verdict.action == "Resume the unfinished runs."
    assert "stopped after 2 of 10 epochs" in build_report(compared)
    titles = run_titles([*finished, same, stopped])
    assert len(set(titles)) == 4
    assert [("stopped" in title) for title in titles] == [False, False, True, True]


def test_a_stopped_run_changes_nothing_of_what_is_said_of_the_strategies(
    three_strategies, make_run
):
    """A stopped run cannot be compared as a strategy, so nothing is corrected for it."""
    alone = compare_runs(three_strategies)
    stopped = [
        make_run(draw_correct(share), seed=seed, status="stopped")
        for seed, share in ((7, 0.3), (8, 0.8))
    ]
    beside = compare_runs([*three_strategies, *stopped])
    assert (beside.verdict.answer, beside.verdict.size) == (
        alone.verdict.answer,
        alone.verdict.size,
    )
    assert beside.verdict.action.startswith(alone.verdict.action)
    assert [pair.strategies for pair in beside.pairs if pair.strategies] == [
        pair.strategies for pair in alone.pairs
    ]
    assert {pair.networks.family for pair in beside.pairs} == {6}


def test_runs_of_equal_settings_and_seed_have_titles_of_their_own(make_run):
    runs = [
        make_run(draw_correct(0.9), status=status) for status in ("stopped", "stopped", "finished")
    ]
    twins = [
        replace(run, run_dir=run.run_dir.with_name(f"{run.run_id[:-4]}{n:04x}"))
        for n, run in enumerate(runs)
    ]
    assert len(set(run_titles(twins))) == 3


def test_stopped_runs_of_many_seeds_say_so(make_run):
    compared = compare_runs(
        [make_run(draw_correct(0.9, seed), seed=seed, status="stopped") for seed in (0, 1)]
    )
    assert [arm.unfinished for arm in compared.arms] == ["stopped after 2 of 10 epochs"] * 2
    assert compared.verdict.answer.count("stopped after 2 of 10 epochs") == 1


def test_runs_of_one_strategy_are_compared_with_each_other(make_run):
    compared = compare_runs([make_run(draw_correct(0.9, seed), seed=seed) for seed in (0, 1, 2)])
    assert [arm.title for arm in compared.arms] == [
        f"Last block · seed {seed}" for seed in (0, 1, 2)
    ]
    assert len(compared.pairs) == 3
    assert not any(pair.networks.different for pair in compared.pairs)
    assert compared.verdict.answer.startswith("One strategy with 3 seeds: test accuracy ")
    assert compared.verdict.size.endswith("; no two can be told apart.")
    assert compared.arm_verdicts == ()
    assert compared.advised is None


@pytest.mark.train
def test_one_strategy_alone_is_not_the_one_to_take(make_run):
    compared = compare_runs([make_run(draw_correct(0.9))])
    assert compared.pairs == compared.arm_verdicts == ()
    accuracy = compared.arms[0].score
    assert (
        compared.verdict.answer
        == f"Last block: test accuracy {format_percent(accuracy.value)} on 540 images."
    )
    assert (
        compared.verdict.size
        == f"95 % CI {format_percent(accuracy.low)} to {format_percent(accuracy.high)}."
    )
    assert compared.advised is None
    assert "Add another strategy" in compared.verdict.action
    assert "Take this one" not in build_report(compared)
    assert "★" not in build_report(compared)


def make_runs(make_run, seeds=3, images=IMAGES, **shares):
    """Make runs of each strategy, right on about that share of the images."""
    return [
        make_run(
            draw_correct(share, seed)[:images],
            strategy=name,
            seed=seed,
            seconds=6.0 if name == "linear_probe" else 30.0,
        )
        for name, share in shares.items()
        for seed in range(seeds)
    ]


def test_a_clear_winner_is_named_with_its_lead_and_is_to_be_used(make_run):
    compared = compare_runs(make_runs(make_run, last_block=0.9, full=0.85, linear_probe=0.8))
    pair = find_pair(compared.to_json(), "Last block", "Full fine-tuning")
    verdict = compared.verdict
    best, rival = (format_percent(compared.arms[at].score.value) for at in compared.order[:2])
    assert verdict.answer == (
        f"Last block is best on 540 images: test accuracy {best}, "
        f"against {rival} for full fine-tuning."
    )
    low, high = (f"{pair[end] * 100:.1f}" for end in ("ci_low", "ci_high"))
    by = format_points(pair["difference"])
    assert verdict.size == f"Difference {by} (95 % CI {low} to {high})."
    assert verdict.action == "Use last block."
    assert str(verdict) == compared.to_json()["verdict"] == " ".join(verdict.lines)


def test_the_cheapest_that_is_not_distinguishable_is_to_be_used_with_what_it_saves(
    three_strategies,
):
    verdict = compare_runs(three_strategies).verdict
    assert verdict.answer == (
        "No difference shown on 540 images: test accuracy 89.2 % for feature extraction, "
        "89.4 % for last block."
    )
    assert verdict.size == "Difference −0.3 points (95 % CI −1.7 to 1.2)."
    assert verdict.action == "Use feature extraction: 3.0 s per run instead of 20 s."


@pytest.mark.parametrize(
    ("trained", "does"), [(0.851, "as well"), (0.70, "better")], ids=["alike", "worse"]
)
def test_where_nothing_beats_the_linear_probe_it_is_the_answer(make_run, trained, does):
    compared = compare_runs(make_runs(make_run, linear_probe=0.85, last_block=trained, full=0.6))
    verdict = compared.verdict
    assert verdict.answer.startswith(f"Train nothing: on 540 images a linear probe does {does}, ")
    assert verdict.answer.endswith(" for last block.")
    assert verdict.action == "Use the linear probe: 6.0 s per run instead of 30 s."
    assert not any("trained" in line for line in detail_lines(compared))


def test_a_probe_that_may_be_five_points_worse_is_not_said_to_do_as_well(make_run):
    compared = compare_runs(make_runs(make_run, images=74, linear_probe=0.67, last_block=0.70))
    pair = compared.to_json()["pairs"][0]
    assert max(abs(pair["ci_low"]), abs(pair["ci_high"])) > 0.05
    assert compared.advised == 0
    assert compared.verdict.answer.startswith("No difference shown on 74 images")


def test_the_number_of_images_that_is_asked_for_would_show_five_points():
    """Equal answers, repeated up to that number of images, are tested by the shipped code."""
    random = np.random.default_rng(1)
    sides = [np.tile(random.random(60) < share, (2, 1)) for share in (0.7, 0.75)]

    def tested(times):
        arms = [summarize_accuracy(np.tile(side, (1, times))) for side in sides]
        return compare_pairs(arms, [True, True], pool_seed_variances(arms, [True, True]))[0]

    needed = tested(1).images_needed(0.05)
    times = -(-needed // 60)
    assert tested(times).strategies.smallest == pytest.approx(0.05, rel=0.05)
    assert tested(times // 2).strategies.smallest > 0.06
    assert tested(2 * times).images_needed(0.05) is None
    assert tested(1).images_needed(0.0001) is None


def test_an_arm_that_has_not_converged_comes_first_and_nothing_follows_about_layers(
    make_run, monkeypatch
):
    falls = Convergence(False, "its validation loss still falls")
    monkeypatch.setattr(
        "finetune_core.evaluation.comparison.compare.judge_together",
        lambda runs: [
            falls if config.strategy == "last_block" else Convergence(True, "")
            for config, _ in runs
        ],
    )
    compared = compare_runs(make_runs(make_run, last_block=0.9, full=0.7, linear_probe=0.8))
    assert compared.verdict.lines == (
        "Not trained long enough: last block.",
        "Its validation loss still falls.",
        "Train further: until then nothing follows about layers.",
    )
    assert (compared.advised, compared.optimism, compared.baseline) == (None, None, "")


def test_a_loss_is_compared_in_its_own_unit_and_sign(make_run):
    compared = compare_runs(make_runs(make_run, last_block=0.9, full=0.8), "log_loss")
    verdict = compared.verdict
    assert verdict.answer.startswith("Last block is best on 540 test images: log loss 0.4")
    assert verdict.size.startswith("Difference −0.")
    assert " nats (95 % CI −0." in verdict.size
    assert "log loss" not in verdict.size


def test_validation_accuracy_is_called_that_and_the_note_stands_under_details(make_run):
    runs = [
        make_run(draw_correct(share, seed), strategy=name, seed=seed, tested=False)
        for name, share in (("last_block", 0.9), ("full", 0.8))
        for seed in (0, 1)
    ]
    compared = compare_runs(runs)
    assert ": validation accuracy " in compared.verdict.answer
    assert "test accuracy" not in str(compared.verdict)
    assert any("optimistic" in line for line in detail_lines(compared))
    assert "its validation accuracy is optimistic" in compared.footnote


def test_of_many_arms_the_verdict_names_two(make_run):
    rates = [0.01 / 2**power for power in range(12)]
    compared = compare_runs(
        [
            make_run(draw_correct(0.9 - at / 100, seed), learning_rate=rate, seed=seed)
            for at, rate in enumerate(rates)
            for seed in (0, 1)
        ]
    )
    assert len(compared.arms) == 12
    assert sum(arm.title.lower() in str(compared.verdict).lower() for arm in compared.arms) == 2
    assert max(len(line.split()) for line in compared.verdict.lines) < 30


def test_the_report_says_the_verdict_once_and_folds_the_rest(three_strategies):
    compared = compare_runs(three_strategies)
    html = comparison_html(compared)
    shown, folded = html.split("<details>")
    assert all(shown.count(line) == 1 and line not in folded for line in compared.verdict.lines)
    assert "These trained models" in folded
    assert "The method in general" in folded
    assert shown.count("is optimistic: choosing the best flatters it by") == 1


def test_only_seeds_of_an_arm_that_trains_in_epochs_are_said_to_spread(make_run):
    """A probe is the same with every seed: it has its own spread, which is none."""
    shares = {"last_block": (0.85, 0.85, 0.86), "full": (0.72, 0.8, 0.9)}
    trained = [
        make_run(draw_correct(share, 7), strategy=name, seed=seed)
        for name, some in shares.items()
        for seed, share in enumerate(some)
    ]
    probes = [make_run(draw_correct(0.8), strategy="linear_probe", seed=seed) for seed in range(3)]
    stopped = [
        make_run(draw_correct(share), strategy="bias_only", seed=seed, status="stopped")
        for seed, share in enumerate((0.5, 0.9))
    ]
    notes = compare_runs([*trained, *probes, *stopped]).notes
    assert [note for note in notes if "spread" in note] == [
        "The seeds of “Full fine-tuning” spread more than the others', so their own spread counts."
    ]
