"""The next experiment: each rule on its own, and their order."""

from dataclasses import replace

import pytest

from finetune_core.evaluation.comparison import next_experiment as rules
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.layer_diagnostics import Layers, StageMove
from finetune_core.evaluation.comparison.next_experiment import (
    Evidence,
    Experiment,
    experiment_json,
    next_experiment,
)
from finetune_core.evaluation.comparison.shift import ShiftComparison
from finetune_core.evaluation.single_run.corruptions import Corrupted
from finetune_core.evaluation.single_run.shared_classes import SharedClasses
from finetune_core.formatting import percent, points
from finetune_core.inspection.learned import Probe
from finetune_core.runs.design import arm_of
from tests.evaluation.conftest import STAGES
from tests.evaluation.simulated import right

# accuracy of linear models on the features of the stages
FALLING, RISING = ((0.6, 0.9, 0.8), (0.6, 0.8, 0.9))

NOISE = Corrupted("test", "noise", 3)
EVERY_CLASS = SharedClasses((0, 1), ("cat", "dog"), {}, {})


@pytest.fixture
def compared(made_run):
    """``compared(strategy=share, …, seeds=…)``: the comparison of runs that are right on about that share of the images."""

    def make(seeds=3, runs=(), **shares):
        made = [
            made_run(right(share, seed), strategy=name, seed=seed)
            for name, share in shares.items()
            for seed in range(seeds)
        ]
        return compare_runs([*runs, *made])

    return make


def seen(comparison, shifted=None, layers=None):
    """Evidence; ``shifted``: the same arms on other images of the same classes; ``layers`` by strategy."""
    shift = shifted and ShiftComparison(comparison, comparison, shifted, NOISE, EVERY_CLASS)
    return Evidence(
        comparison, shift, tuple((layers or {}).get(arm.config.strategy) for arm in comparison.arms)
    )


def layers_of(trained, accuracies=RISING, shares=None, likeness=1.0, names=STAGES):
    """Of a run of which the last ``trained`` stages train; ``shares`` of the gradient by stage."""
    first = len(names) - trained
    moves = (
        StageMove(
            name,
            at >= first,
            0.1,
            likeness if at < len(names) - 1 else None,
            (shares or {}).get(name),
            0.1,
        )
        for at, name in enumerate(names)
    )
    probes = tuple(
        Probe(name, accuracy, 0.02) for name, accuracy in zip(names, accuracies, strict=False)
    )
    return Layers(tuple(moves), probes, 100, 100, 0.9)


def arm(comparison, strategy):
    return next(one for one in comparison.arms if one.config.strategy == strategy)


def differs_in(config, *runs):
    """In which settings a config differs from that of each run."""
    return [{name for name, value in config if value != getattr(run.config, name)} for run in runs]


# --- the baseline


def test_without_a_baseline_a_linear_probe_for_each_seed_of_the_best_comes_next(compared):
    comparison = compared(last_block=0.9, full=0.8)
    found = rules.baseline(seen(comparison))
    assert [(one.strategy, one.seed) for one in found.configs] == [
        ("linear_probe", seed) for seed in range(3)
    ]
    assert (
        f"“Last block” ({percent(arm(comparison, 'last_block').score.value)}) has no linear probe"
        in found.reason
    )
    assert not found.inferred


def test_with_a_baseline_or_nothing_that_trained_in_epochs_there_is_none_to_fit(compared):
    assert rules.baseline(seen(compared(last_block=0.9, linear_probe=0.8))) is None
    assert rules.baseline(seen(compared(prototypes=0.8))) is None


def test_the_baseline_is_that_of_the_best_network(compared, made_run):
    other = [
        made_run(right(0.95, seed), strategy="full", backbone="resnet18", seed=seed)
        for seed in range(2)
    ]
    found = rules.baseline(seen(compared(last_block=0.9, runs=other)))
    assert {one.backbone for one in found.configs} == {"resnet18"}


# --- the shifted set


def shifts(compared, own, shifted):
    return rules.shift(seen(compared(**own), compared(**shifted)))


def test_lp_ft_comes_next_where_training_won_on_its_own_images_and_lost_on_shifted_ones(compared):
    own, shifted = compared(linear_probe=0.80, full=0.90), compared(linear_probe=0.80, full=0.60)
    found = rules.shift(seen(own, shifted))
    assert [(one.strategy, one.seed) for one in found.configs] == [
        ("linear_probe_then_full", seed) for seed in range(3)
    ]
    for one, run in zip(found.configs, arm(own, "full").runs, strict=True):
        assert differs_in(one, run) == [{"strategy"}]
    gain, loss = (side.pairs[0].strategies.claim for side in (own, shifted))
    assert f"beats “Linear probe” by {points(abs(gain.gain))} points" in found.reason
    assert (
        f"{points(abs(loss.gain))} points ({points(loss.low)} to {points(loss.high)}) worse on 540 shifted images"
        in found.reason
    )
    assert not found.inferred


@pytest.mark.parametrize(
    ("own", "shifted"),
    [
        ({"linear_probe": 0.80, "full": 0.90}, {"linear_probe": 0.80, "full": 0.795}),
        ({"linear_probe": 0.80, "full": 0.805}, {"linear_probe": 0.80, "full": 0.60}),
        ({"linear_probe": 0.80, "full": 0.70}, {"linear_probe": 0.80, "full": 0.60}),
        ({"linear_probe": 0.80, "full": 0.90}, {"linear_probe": 0.60, "full": 0.80}),
        (
            {"linear_probe": 0.80, "linear_probe_then_full": 0.90},
            {"linear_probe": 0.80, "linear_probe_then_full": 0.60},
        ),
        ({"last_block": 0.80, "full": 0.90}, {"last_block": 0.80, "full": 0.60}),
    ],
    ids=[
        "no loss shown",
        "no gain shown",
        "lost on both",
        "won on both",
        "LP-FT itself",
        "no frozen features",
    ],
)
def test_the_shifted_set_says_nothing_otherwise(compared, own, shifted):
    assert shifts(compared, own, shifted) is None


def test_after_lp_ft_comes_wise_ft_which_trains_nothing_and_then_nothing(compared, made_run):
    tried = {"linear_probe_then_full": 0.85}
    own, shifted = (compared(linear_probe=0.80, full=share, **tried) for share in (0.90, 0.60))
    found = rules.shift(seen(own, shifted))
    assert (found.what, found.configs) == (
        "average the weights of “Full fine-tuning” with those that it started from (WiSE-FT)",
        (),
    )
    averaged = {"how": "wise", "runs": [str(arm(own, "full").runs[0].run_dir)]}
    wise = made_run(right(0.88), strategy="full", averaged=averaged)
    runs = [run for one in own.arms for run in one.runs]
    assert (
        rules.shift(
            seen(
                compare_runs([*runs, wise]),
                compare_runs([*(run for one in shifted.arms for run in one.runs), wise]),
            )
        )
        is None
    )


def test_averaged_weights_get_no_seeds(compared, made_run):
    averaged = {"how": "soup", "runs": ["/runs/one", "/runs/two"]}
    soup = made_run(right(0.851), strategy="last_block", averaged=averaged)
    assert rules.seeds(seen(compared(last_block=0.85, runs=[soup]))) is None


def test_without_a_shifted_set_nothing_is_said_of_it(compared):
    assert rules.shift(seen(compared(linear_probe=0.80, full=0.90))) is None


# --- more images


def with_fractions(compared, made_run, **shares):
    """Last block, by the percentage of the images that it trained on."""
    runs = [
        made_run(
            right(share, seed), strategy="last_block", train_fraction=int(name[1:]) / 100, seed=seed
        )
        for name, share in shares.items()
        for seed in range(3)
    ]
    return seen(compared(runs=runs))


def test_more_images_come_next_while_the_curve_rises(compared, made_run):
    evidence = with_fractions(compared, made_run, p25=0.7, p40=0.8)
    found = rules.images(evidence)
    assert [(one.train_fraction, one.seed) for one in found.configs] == [
        (0.8, seed) for seed in range(3)
    ]
    claim = evidence.own.pairs[0].strategies.claim
    assert (
        f"From 25 % to 40 % of the training images, “Last block” gained {points(abs(claim.gain))} points ("
        in found.reason
    )


def test_no_more_than_all_images_can_be_used_and_then_more_have_to_be_labelled(compared, made_run):
    assert {
        one.train_fraction
        for one in rules.images(with_fractions(compared, made_run, p25=0.7, p60=0.8)).configs
    } == {1.0}
    found = rules.images(with_fractions(compared, made_run, p25=0.6, p50=0.7, p100=0.8))
    assert (found.configs, found.what) == ((), "label more images")
    assert "From 50 % to 100 %" in found.reason


def test_a_curve_that_is_flat_or_is_none_asks_for_no_images(compared, made_run):
    assert rules.images(with_fractions(compared, made_run, p25=0.6, p50=0.800, p100=0.805)) is None
    assert rules.images(with_fractions(compared, made_run, p50=0.8)) is None
    assert rules.images(seen(compared(last_block=0.9, full=0.8))) is None
    assert rules.images(seen(compared(last_block=0.9))) is None, "seeds of one strategy"


# --- more seeds


def test_seeds_of_the_best_two_come_next_where_they_are_not_distinguishable(compared):
    comparison = compared(seeds=2, last_block=0.850, full=0.845, feature_extraction=0.6)
    found = rules.seeds(seen(comparison))
    assert [(one.strategy, one.seed) for one in found.configs] == [(arm_first(comparison), 2)]
    assert "not distinguishable with 2 seeds and 2 seeds" in found.reason
    for name in ("last_block", "full"):
        assert percent(arm(comparison, name).score.value) in found.reason
    assert "60." not in found.reason


def arm_first(comparison):
    return max(comparison.arms, key=lambda one: one.rank).config.strategy


def test_the_one_with_fewer_seeds_gets_those_that_it_lacks(compared, made_run):
    one_seed = [made_run(right(0.84), strategy="full", seed=1)]
    found = rules.seeds(seen(compared(last_block=0.85, runs=one_seed)))
    assert [(one.strategy, one.seed) for one in found.configs] == [("full", 0), ("full", 2)]
    assert found.what == "train “Full fine-tuning” with seeds 0 and 2"
    assert "cannot be compared as strategies" in found.reason


def test_three_seeds_or_a_difference_that_has_shown_ask_for_no_more(compared):
    assert rules.seeds(seen(compared(seeds=3, last_block=0.850, full=0.845))) is None
    assert rules.seeds(seen(compared(seeds=2, last_block=0.9, full=0.7))) is None
    assert rules.seeds(seen(compared(last_block=0.9))) is None


# --- which stage to thaw, or to freeze


def test_the_stage_that_the_probes_name_thaws_next_by_the_ready_made_strategy(compared):
    comparison = compared(feature_extraction=0.8)
    found = rules.thaw(seen(comparison, layers={"feature_extraction": layers_of(1, FALLING)}))
    [config] = found.configs
    assert config.strategy == "last_block"
    assert (found.what, found.inferred) == ("thaw block2 next", True)
    assert "90.0 %" in found.reason
    assert "80.0 %" in found.reason


def test_a_cut_that_no_ready_made_strategy_has_is_a_custom_one(compared):
    deep = layers_of(
        3, (0.6, 0.9, 0.8), names=("stem", "block1", "block2", "block3", "block4", "head")
    )
    [config] = rules.thaw(
        seen(compared(last_two_blocks=0.8), layers={"last_two_blocks": deep})
    ).configs
    assert (config.strategy, config.cut) == ("custom", "block2")


def test_nothing_thaws_that_was_tried_or_where_probes_rise_or_were_not_measured(compared):
    falling = {"feature_extraction": layers_of(1, FALLING)}
    assert (
        rules.thaw(seen(compared(feature_extraction=0.8, last_block=0.7), layers=falling)) is None
    )
    assert (
        rules.thaw(
            seen(compared(feature_extraction=0.8), layers={"feature_extraction": layers_of(1)})
        )
        is None
    )
    assert rules.thaw(seen(compared(feature_extraction=0.8))) is None
    assert (
        rules.thaw(seen(compared(first_block=0.8), layers={"first_block": layers_of(1, FALLING)}))
        is None
    )


def test_what_trained_without_effect_freezes_again(compared):
    measured = layers_of(4, shares={"stem": 0.001, "block1": 0.003, "block2": 0.5, "head": 0.496})
    changed = replace(
        measured,
        stages=tuple(
            replace(one, likeness=0.7) if one.name == "block2" else one for one in measured.stages
        ),
    )
    found = rules.freeze(seen(compared(full=0.8), layers={"full": changed}))
    [config] = found.configs
    assert (config.strategy, found.what, found.inferred) == (
        "last_block",
        "freeze stem to block1 again",
        True,
    )
    assert "0.4 % of the gradient" in found.reason


@pytest.mark.parametrize(
    ("shares", "likeness"),
    [
        ({"stem": 0.02, "block1": 0.01, "block2": 0.5, "head": 0.47}, 1.0),
        ({"stem": 0.001, "head": 0.999}, 0.9),
        ({}, 1.0),
    ],
    ids=["too much of the gradient", "its features changed", "not recorded"],
)
def test_nothing_freezes_again_that_took_part(compared, shares, likeness):
    assert (
        rules.freeze(
            seen(
                compared(full=0.8), layers={"full": layers_of(4, shares=shares, likeness=likeness)}
            )
        )
        is None
    )


def test_what_is_frozen_already_cannot_be_frozen_again(compared):
    assert (
        rules.freeze(
            seen(
                compared(feature_extraction=0.8),
                layers={"feature_extraction": layers_of(1, shares={"head": 1.0})},
            )
        )
        is None
    )


# --- together


def test_what_was_measured_comes_before_what_is_inferred(compared):
    falling = {"feature_extraction": layers_of(1, FALLING)}
    own = compared(seeds=2, linear_probe=0.80, feature_extraction=0.905, full=0.90)
    shifted = compared(seeds=2, linear_probe=0.80, feature_extraction=0.85, full=0.60)
    assert (
        next_experiment(seen(compared(feature_extraction=0.9, full=0.9), layers=falling)).kind
        == "baseline"
    )
    assert next_experiment(seen(own, shifted, falling)).kind == "shift"
    assert next_experiment(seen(own, None, falling)).kind == "seeds"
    settled = compared(linear_probe=0.7, feature_extraction=0.9)
    assert next_experiment(seen(settled, None, falling)).kind == "thaw"
    assert next_experiment(seen(settled)) is None


def test_the_runs_of_an_experiment_are_of_one_arm(compared):
    found = next_experiment(seen(compared(last_block=0.9, full=0.8)))
    assert len({arm_of(one) for one in found.configs}) == 1


def test_as_json_it_names_what_is_new_of_its_runs(compared):
    found = next_experiment(seen(compared(seeds=1, last_block=0.9)))
    assert isinstance(found, Experiment)
    result = experiment_json(found, None)
    assert (result["kind"], result["forecast"], result["inferred"]) == ("baseline", None, False)
    assert [(run["strategy"], run["seed"]) for run in result["runs"]] == [("linear_probe", 0)]
    assert experiment_json(None, None) is None
