"""Result of a profile in one sentence."""

import pytest

from finetune_core.profiling.plan import SelectionStep
from tests.profiling.made import FALLING, STAGES, interval, make_arm, make_profile


def make_full(gain=0.0, judged=None):
    more = {"judged": judged} if judged else {}
    return make_arm("full", *STAGES, gain=gain, parameters=1000, seconds=100.0, **more)


def reject(stage):
    return (SelectionStep("block2", 0.8, None, True), SelectionStep(stage, 0.81, 0.01, False))


def test_a_stage_that_gains_is_named_with_its_size_and_its_price():
    found = make_profile(
        make_arm("stage", "block2", gain=0.061, parameters=310),
        make_full(0.05),
        against_full=interval(-0.011),
        path=reject("block1"),
    )
    assert found.sentence == (
        "Training block2 alone gains 6.1 points (4.1 to 8.1) over a linear probe; adding block1 "
        "gains nothing measurable; full fine-tuning is not better. Train block2: 31 % of the "
        "parameters, 40 % of the time."
    )
    assert found.worth_training == ("block2",)


def test_where_nothing_is_gained_it_says_train_nothing():
    found = make_profile(
        make_arm("stage", "block2", gain=0.012), make_full(0.01), against_full=interval(0)
    )
    assert found.sentence == (
        "No stage gains anything measurable over a linear probe (best: block2, 1.2 points, "
        "−0.8 to 3.2). Train nothing: take the linear probe."
    )
    assert found.worth_training == ()


@pytest.mark.parametrize(("probe", "said"), [(1.0, "all"), (0.99, "all but 3")])
def test_where_the_probe_leaves_too_few_errors_no_training_could_show_a_gain(probe, said):
    undertrained = make_arm("stage", "block2", gain=0.0, judged=FALLING)
    found = make_profile(undertrained, probe=probe)
    assert found.sentence == (
        f"No gain could be measured: the linear probe classifies {said} of 300 test images "
        "correctly. Train nothing: take the linear probe."
    )
    assert found.worth_training == ()


def test_two_stages_are_named_together():
    both = make_arm("stages", "block2", "block1", gain=0.1)
    found = make_profile(both, make_full(0.1), against_full=interval(0))
    assert found.sentence.startswith("Training block2 and block1 gains 10.0 points")


def test_full_fine_tuning_that_gains_more_is_advised():
    found = make_profile(
        make_arm("stage", "block2", gain=0.06), make_full(0.11), against_full=interval(0.05)
    )
    assert "full fine-tuning gains 5.0 points (3.0 to 7.0) more. Train all" in found.sentence
    assert found.worth_training == STAGES
    only = make_profile(
        make_arm("stage", "block2", gain=0.0), make_full(0.05), against_full=interval(0.05)
    )
    assert only.sentence.endswith(
        "full fine-tuning gains 5.0 points (3.0 to 7.0). Train all stages."
    )
    worse = make_profile(
        make_arm("stage", "block2", gain=0.06), make_full(0.01), against_full=interval(-0.05)
    )
    assert "full fine-tuning loses 5.0 points (3.0 to 7.0) against it" in worse.sentence


def test_what_only_the_test_images_say_has_to_be_confirmed():
    arms = (make_arm("stage", "block2", gain=0.01), make_arm("stage", "block1", gain=0.05))
    found = make_profile(*arms)
    assert "block1 gains 5.0 points (3.0 to 7.0). Confirm it" in found.sentence
    assert found.worth_training == ()


def test_nothing_is_concluded_about_what_has_not_converged():
    found = make_profile(make_arm("stage", "block2", gain=0.01, judged=FALLING))
    assert found.sentence.startswith("Nothing is concluded: block2 has not converged")
    assert found.worth_training == ()
    other = make_profile(
        make_arm("stage", "block2", gain=0.06), make_full(0.2, FALLING), against_full=interval(0.14)
    )
    assert other.worth_training == ("block2",)
    assert "full fine-tuning" not in other.sentence
    (note,) = other.notes
    assert note.startswith("Not converged, so nothing is concluded about: all stages")


def test_an_undertrained_stage_that_gains_is_named_without_a_word_on_others():
    begun = make_arm("stage", "block2", gain=0.06, judged=FALLING)
    found = make_profile(begun, make_full(0.2), against_full=interval(0.14))
    assert found.sentence == (
        "Training block2 gains 6.0 points (4.0 to 8.0) over a linear probe, and has not converged "
        "(its validation loss still falls): it may gain more. Train longer to "
        "compare it with other stages."
    )
    assert found.worth_training == ("block2",)


def test_a_profile_that_is_not_complete_says_so():
    begun = make_profile(chosen=0, missing=3, round="selection")
    assert begun.sentence == (
        "The profile is not complete: 3 runs of the round “Adding a stage” to go."
    )
    decided = make_profile(missing=2, round="third_seeds")
    assert decided.sentence.startswith("Training block2 alone gains")
    assert "2 runs of the round “A third seed” to go" in decided.notes[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"split": "val"}, "optimistic"),
        ({"left_out": ("third_seeds", "full_seeds")}, "a third seed, the second seed of full"),
        ({"failed": ("Full fine-tuning, seed 0",)}, "Could not be trained: Full fine-tuning"),
    ],
)
def test_what_limits_the_answer_is_noted(changes, said):
    assert any(said in note for note in make_profile(**changes).notes)


def test_a_short_run_is_marked():
    found = make_profile(
        make_arm("stage", "block2", gain=0.06), make_arm("short", "stem", gain=-0.01)
    )
    columns, rows = found.to_rows()
    assert [dict(zip(columns, row, strict=True))["How far"] for row in rows] == [
        "selected",
        "stopped after the short round",
    ]
    assert any("short round" in note for note in found.notes)
    assert "−1.0" in rows[1]


def test_in_a_notebook_it_shows_itself():
    found = make_profile()
    assert found.sentence in repr(found)
    assert found.sentence in found._repr_html_()
