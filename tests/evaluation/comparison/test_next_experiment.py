"""Next experiment: each rule on its own, and their order."""

from dataclasses import replace

import pytest

from finetune_core.evaluation.comparison import next_experiment as rules
from finetune_core.evaluation.comparison.compare import compare_runs
from finetune_core.evaluation.comparison.experiment import (
    Evidence,
    Experiment,
    experiment_json,
)
from finetune_core.evaluation.comparison.layer_diagnostics import Layers, StageChange
from finetune_core.evaluation.comparison.next_experiment import next_experiment
from finetune_core.evaluation.comparison.shift import ShiftComparison
from finetune_core.evaluation.single_run.corruptions import CorruptedSplit
from finetune_core.evaluation.single_run.shared_classes import SharedClasses
from finetune_core.formatting import format_percent, format_points
from finetune_core.inspection.learned import Probe
from finetune_core.runs.convergence import Convergence
from finetune_core.runs.design import arm_key
from tests.evaluation.conftest import STAGES
from tests.evaluation.simulated import draw_correct

# accuracy of linear models on the features of the stages
FALLING, RISING = ((0.6, 0.9, 0.8), (0.6, 0.8, 0.9))

NOISE = CorruptedSplit("test", "noise", 3)
EVERY_CLASS = SharedClasses((0, 1), ("cat", "dog"), {}, {})


@pytest.fixture
def compared(make_run):
    """Return ``compared(strategy=share, …)``, which compares runs right on about these shares."""

    def make(seeds=3, runs=(), **shares):
        made = [
            make_run(draw_correct(share, seed), strategy=name, seed=seed)
            for name, share in shares.items()
            for seed in range(seeds)
        ]
        return compare_runs([*runs, *made])

    return make


@pytest.fixture
def shown(compared):
    """Return ``shown(…)``, which gives the evidence of ``compared(…)``, with layers by strategy."""

    def make(layers=None, **more):
        return make_evidence(compared(**more), layers=layers)

    return make


def make_evidence(comparison, shifted=None, layers=None):
    """Return evidence; ``shifted`` compares the same arms on other images of the same classes."""
    shift = shifted and ShiftComparison(comparison, comparison, shifted, NOISE, EVERY_CLASS)
    found = tuple((layers or {}).get(arm.config.strategy) for arm in comparison.arms)
    return Evidence(comparison, shift, found)


def add_profile(evidence):
    """Return the evidence after the layers have been profiled."""
    configs = [arm.config for arm in evidence.own.arms]
    profiled = frozenset(f"{one.data} {rules.features_key(one)}" for one in configs)
    return replace(evidence, profiled=profiled)


def make_layers(trained, accuracies=RISING, shares=None, likeness=1.0, names=STAGES):
    """Return layers whose last ``trained`` stages train, with ``shares`` of the gradient."""
    moves = tuple(
        StageChange(
            name,
            at >= len(names) - trained,
            0.1,
            likeness if name != names[-1] else None,
            (shares or {}).get(name),
            0.1,
        )
        for at, name in enumerate(names)
    )
    probes = (Probe(name, one, 0.02) for name, one in zip(names, accuracies, strict=False))
    return Layers(moves, tuple(probes), 100, 100, 0.9)


def find_arm(comparison, strategy):
    return next(one for one in comparison.arms if one.config.strategy == strategy)


def list_runs(found):
    return [(one.strategy, one.seed) for one in found.configs]


# --- the baseline


def test_without_a_baseline_one_linear_probe_comes_next(compared):
    comparison = compared(last_block=0.9, full=0.8)
    found = rules.propose_baseline(make_evidence(comparison))
    assert list_runs(found) == [("linear_probe", 0)]
    accuracy = format_percent(find_arm(comparison, "last_block").score.value)
    assert f"“Last block” ({accuracy}) has no linear probe" in found.reason
    assert not found.inferred


def test_with_a_baseline_or_nothing_that_trained_in_epochs_there_is_none_to_fit(shown):
    assert rules.propose_baseline(shown(last_block=0.9, linear_probe=0.8)) is None
    assert rules.propose_baseline(shown(prototypes=0.8)) is None


def test_the_baseline_is_that_of_the_best_network(shown, make_run):
    changes = {"strategy": "full", "backbone": "resnet18"}
    other = [make_run(draw_correct(0.95, seed), seed=seed, **changes) for seed in range(2)]
    found = rules.propose_baseline(shown(last_block=0.9, runs=other))
    assert {one.backbone for one in found.configs} == {"resnet18"}


# --- the profile


def test_after_the_baseline_a_profile_comes_next_once(compared):
    comparison = compared(last_block=0.9, linear_probe=0.8)
    found = rules.propose_profile(make_evidence(comparison))
    assert (found.what, found.configs) == ("profile the layers of efficientnet_lite0", ())
    assert "“Last block”" in found.reason
    config = find_arm(comparison, "last_block").config
    assert rules.propose_profile(add_profile(make_evidence(comparison))) is None
    other = frozenset({f"elsewhere {rules.features_key(config)}"})
    assert rules.propose_profile(replace(make_evidence(comparison), profiled=other))


def test_without_a_baseline_or_training_in_epochs_there_is_nothing_to_profile(shown):
    assert rules.propose_profile(shown(last_block=0.9, full=0.8)) is None
    assert rules.propose_profile(shown(linear_probe=0.9, prototypes=0.8)) is None


def test_runs_of_a_profile_are_found_among_all_runs(compared, make_run):
    comparison = compared(last_block=0.9, linear_probe=0.8)
    rates = {"stage_rates": {"block7": 1.0, "head": 1.0}, "strategy": "custom"}
    alone = make_run(draw_correct(0.9), initial_head="probe", **rates)
    plain = make_run(draw_correct(0.9), initial_head="random", **rates)
    offered = [
        rules.propose_profile(rules.collect_evidence(comparison, None, runs))
        for runs in ([alone], [plain])
    ]
    assert offered[0] is None
    assert offered[1]


# --- the shifted set


def test_lp_ft_comes_next_where_training_won_on_its_own_images_and_lost_on_shifted_ones(compared):
    own, shifted = compared(linear_probe=0.80, full=0.90), compared(linear_probe=0.80, full=0.60)
    found = rules.propose_lp_ft(make_evidence(own, shifted))
    assert list_runs(found) == [("linear_probe_then_full", seed) for seed in range(3)]
    for one, run in zip(found.configs, find_arm(own, "full").runs, strict=True):
        changed = {name for name, value in one if value != getattr(run.config, name)}
        assert changed == {"strategy"}
    gain, loss = (side.pairs[0].strategies.claim for side in (own, shifted))
    low, high = format_points(loss.low), format_points(loss.high)
    assert f"beats “Linear probe” by {format_points(abs(gain.gain))} points" in found.reason
    said = f"{format_points(abs(loss.gain))} points ({low} to {high}) worse on 540 shifted images"
    assert said in found.reason
    assert not found.inferred


@pytest.mark.train
@pytest.mark.parametrize(
    ("strategies", "own", "shifted"),
    [
        (("linear_probe", "full"), (0.80, 0.90), (0.80, 0.795)),
        (("linear_probe", "full"), (0.80, 0.805), (0.80, 0.60)),
        (("linear_probe", "full"), (0.80, 0.70), (0.80, 0.60)),
        (("linear_probe", "full"), (0.80, 0.90), (0.60, 0.80)),
        (("linear_probe", "linear_probe_then_full"), (0.80, 0.90), (0.80, 0.60)),
        (("last_block", "full"), (0.80, 0.90), (0.80, 0.60)),
    ],
    ids=["no loss", "no gain", "lost on both", "won on both", "LP-FT itself", "nothing frozen"],
)
def test_the_shifted_set_says_nothing_otherwise(compared, strategies, own, shifted):
    both = (compared(**dict(zip(strategies, side, strict=True))) for side in (own, shifted))
    assert rules.propose_lp_ft(make_evidence(*both)) is None


def test_without_a_shifted_set_nothing_is_said_of_it(shown):
    assert rules.propose_lp_ft(shown(linear_probe=0.80, full=0.90)) is None


@pytest.mark.train
def test_after_lp_ft_comes_wise_ft_which_trains_nothing_and_then_nothing(compared, make_run):
    tried = {"linear_probe_then_full": 0.85}
    sides = [compared(linear_probe=0.80, full=share, **tried) for share in (0.90, 0.60)]
    found = rules.propose_lp_ft(make_evidence(*sides))
    what = "average the weights of “Full fine-tuning” with those that it started from (WiSE-FT)"
    assert (found.what, found.configs) == (what, ())
    averaged = {"how": "wise", "runs": [str(find_arm(sides[0], "full").runs[0].run_dir)]}
    wise = make_run(draw_correct(0.88), strategy="full", averaged=averaged)
    with_wise = (
        compare_runs([*(run for one in side.arms for run in one.runs), wise]) for side in sides
    )
    assert rules.propose_lp_ft(make_evidence(*with_wise)) is None


# --- more images


@pytest.fixture
def fractions(shown, make_run):
    """Return ``fractions(p25=share, …)``: last block, by the percentage of training images."""

    def make(**shares):
        runs = [
            make_run(draw_correct(share, seed), train_fraction=int(name[1:]) / 100, seed=seed)
            for name, share in shares.items()
            for seed in range(3)
        ]
        return shown(runs=runs)

    return make


def test_more_images_come_next_while_the_curve_rises(fractions):
    evidence = fractions(p25=0.7, p40=0.8)
    found = rules.propose_more_images(evidence)
    planned_images = [(one.train_fraction, one.seed) for one in found.configs]
    assert planned_images == [(0.8, seed) for seed in range(3)]
    gain = format_points(abs(evidence.own.pairs[0].strategies.claim.gain))
    said = f"From 25 % to 40 % of the training images, “Last block” gained {gain} points ("
    assert said in found.reason


def test_no_more_than_all_images_can_be_used_and_then_more_have_to_be_labelled(fractions):
    found = rules.propose_more_images(fractions(p25=0.7, p60=0.8))
    assert {one.train_fraction for one in found.configs} == {1.0}
    found = rules.propose_more_images(fractions(p25=0.6, p50=0.7, p100=0.8))
    assert (found.configs, found.what) == ((), "label more images")
    assert "From 50 % to 100 %" in found.reason


@pytest.mark.train
def test_a_curve_that_is_flat_or_is_none_asks_for_no_images(fractions, shown):
    assert rules.propose_more_images(fractions(p25=0.6, p50=0.800, p100=0.805)) is None
    assert rules.propose_more_images(fractions(p50=0.8)) is None
    assert rules.propose_more_images(shown(last_block=0.9, full=0.8)) is None


# --- more seeds


@pytest.fixture
def spread(compared, make_run):
    """Return ``spread(last_block=(share, …), …)``, which takes the accuracy of each seed.

    All seeds are right on the same images.
    """

    def make(**shares):
        return compared(
            runs=[
                make_run(draw_correct(share, arm), strategy=name, seed=seed)
                for arm, (name, by_seed) in enumerate(shares.items())
                for seed, share in enumerate(by_seed)
            ]
        )

    return make


def test_seeds_of_the_arm_that_spreads_most_come_next_where_seeds_hide_a_difference(spread):
    shares = {"last_block": (0.75, 0.95), "full": (0.84, 0.85), "feature_extraction": (0.6, 0.6)}
    comparison = spread(**shares)
    found = rules.propose_more_seeds(make_evidence(comparison))
    assert list_runs(found) == [("last_block", 2)]
    assert "not distinguishable with 2 seeds and 2 seeds" in found.reason
    for name in ("last_block", "full"):
        assert format_percent(find_arm(comparison, name).score.value) in found.reason
    assert "60." not in found.reason


def test_the_one_with_fewer_seeds_gets_those_that_it_lacks(shown, make_run):
    one_seed = [make_run(draw_correct(0.84), strategy="full", seed=1)]
    found = rules.propose_more_seeds(shown(last_block=0.85, runs=one_seed))
    assert list_runs(found) == [("full", 0), ("full", 2)]
    assert found.what == "train “Full fine-tuning” with seeds 0 and 2"
    assert "cannot be compared as strategies" in found.reason


@pytest.mark.train
def test_three_seeds_averages_or_a_difference_that_has_shown_ask_for_no_more(shown, make_run):
    assert rules.propose_more_seeds(shown(seeds=3, last_block=0.850, full=0.845)) is None
    assert rules.propose_more_seeds(shown(seeds=2, last_block=0.9, full=0.7)) is None
    assert rules.propose_more_seeds(shown(last_block=0.9)) is None
    averaged = {"how": "soup", "runs": ["/runs/one", "/runs/two"]}
    soup = make_run(draw_correct(0.851), strategy="last_block", averaged=averaged)
    assert rules.propose_more_seeds(shown(last_block=0.85, runs=[soup])) is None


def test_a_head_that_is_fitted_gets_no_seeds_even_where_it_has_the_fewest(shown, make_run):
    probe = make_run(draw_correct(0.84), strategy="linear_probe", seed=0)
    trained = [make_run(draw_correct(share), seed=seed) for seed, share in enumerate((0.76, 0.96))]
    found = rules.propose_more_seeds(shown(runs=[probe, *trained]))
    assert list_runs(found) == [("last_block", 2)]
    assert "not distinguishable with 2 seeds." in found.reason
    alike = [make_run(draw_correct(0.845, seed), seed=seed) for seed in (5, 6)]
    evidence = shown(runs=[probe, *alike])
    assert rules.propose_more_seeds(evidence) is None
    assert rules.propose_test_images(evidence)


def test_a_fitted_head_gets_seeds_where_they_draw_its_training_images(shown, make_run):
    half = {"train_fraction": 0.5}
    runs = [make_run(draw_correct(0.85, seed), seed=seed, **half) for seed in range(3)]
    runs.append(make_run(draw_correct(0.84), strategy="linear_probe", **half))
    assert list_runs(rules.propose_more_seeds(shown(runs=runs))) == [
        ("linear_probe", 1),
        ("linear_probe", 2),
    ]


# --- more test images


def test_test_images_come_next_where_their_error_hides_a_difference(spread):
    evidence = make_evidence(spread(last_block=(0.85, 0.85, 0.85), full=(0.84, 0.84, 0.84)))
    assert rules.propose_more_seeds(evidence) is None
    found = rules.propose_test_images(evidence)
    assert (found.what, found.configs) == ("evaluate on more test images", ())
    now = evidence.own.pairs[0].strategies.smallest
    assert (
        f"a difference of {format_points(now / 2)} points, these only one of {format_points(now)}"
        in found.reason
    )


def test_test_images_are_not_asked_for_where_a_difference_has_shown_or_seeds_hide_it(spread, shown):
    assert (
        rules.propose_test_images(make_evidence(spread(last_block=(0.95,) * 3, full=(0.6,) * 3)))
        is None
    )
    assert (
        rules.propose_test_images(make_evidence(spread(last_block=(0.75, 0.95), full=(0.84, 0.85))))
        is None
    )
    assert rules.propose_test_images(shown(seeds=1, last_block=0.85, full=0.84)) is None


# --- training that has not converged


def test_longer_training_comes_first_for_what_has_not_converged(shown):
    evidence = shown(last_block=0.9, full=0.8)
    slow = Convergence(False, "its validation loss still falls")
    arms = tuple(
        replace(one, convergence=slow) if one.config.strategy == "full" else one
        for one in evidence.own.arms
    )
    found = next_experiment(replace(evidence, own=replace(evidence.own, arms=arms)))
    assert (found.kind, found.what) == ("converge", "train “Full fine-tuning” for 20 epochs")
    assert [(one.strategy, one.epochs) for one in found.configs] == [("full", 20)] * 3
    assert "its validation loss still falls" in found.reason


# --- which stage to thaw, or to freeze


def test_the_stage_that_the_probes_name_thaws_next_by_the_ready_made_strategy(shown):
    layers = {"feature_extraction": make_layers(1, FALLING)}
    found = rules.propose_thaw(shown(feature_extraction=0.8, layers=layers))
    [config] = found.configs
    assert config.strategy == "last_block"
    assert (found.what, found.inferred) == ("train from block2 on", True)
    assert "90.0 %" in found.reason
    assert "80.0 %" in found.reason


def test_a_cut_that_no_ready_made_strategy_has_is_a_custom_one(shown):
    names = ("stem", "block1", "block2", "block3", "block4", "head")
    layers = {"last_two_blocks": make_layers(3, FALLING, names=names)}
    [config] = rules.propose_thaw(shown(last_two_blocks=0.8, layers=layers)).configs
    assert (config.strategy, config.cut) == ("custom", "block2")


@pytest.mark.parametrize(
    ("shares", "layers"),
    [
        ({"feature_extraction": 0.8, "last_block": 0.7}, make_layers(1, FALLING)),
        ({"feature_extraction": 0.8}, make_layers(1)),
        ({"feature_extraction": 0.8}, None),
        ({"first_block": 0.8}, make_layers(1, FALLING)),
    ],
    ids=["tried", "probes rise", "not measured", "frozen elsewhere"],
)
def test_nothing_thaws_otherwise(shown, shares, layers):
    assert rules.propose_thaw(shown(**shares, layers={next(iter(shares)): layers})) is None


def test_what_trained_without_effect_freezes_again(shown):
    measured = make_layers(4, shares={"stem": 0.001, "block1": 0.003, "block2": 0.5, "head": 0.496})
    changed = [
        replace(one, likeness=0.7) if one.name == "block2" else one for one in measured.stages
    ]
    layers = {"full": replace(measured, stages=tuple(changed))}
    found = rules.propose_freeze(shown(full=0.8, layers=layers))
    [config] = found.configs
    assert (config.strategy, found.inferred) == ("last_block", True)
    assert found.what == "freeze stem to block1 again"
    assert "0.4 % of the gradient" in found.reason


@pytest.mark.parametrize(
    ("strategy", "layers"),
    [
        (
            "full",
            make_layers(4, shares={"stem": 0.02, "block1": 0.01, "block2": 0.5, "head": 0.47}),
        ),
        ("full", make_layers(4, shares={"stem": 0.001, "head": 0.999}, likeness=0.9)),
        ("full", make_layers(4)),
        ("feature_extraction", make_layers(1, shares={"head": 1.0})),
    ],
    ids=["too much of the gradient", "its features changed", "not recorded", "frozen already"],
)
def test_nothing_freezes_again_that_took_part_or_is_frozen(shown, strategy, layers):
    assert rules.propose_freeze(shown(**{strategy: 0.8}, layers={strategy: layers})) is None


# --- together


def test_the_rules_are_asked_in_order():
    """Convergence, the baseline, the profile, seeds and test images come before the other rules."""
    order = ["converge", "baseline", "profile", "seeds", "test_images"]
    assert list(rules.RULES)[:5] == order
    assert set(list(rules.RULES)[5:]) == {"shift", "images", "thaw", "freeze"}


@pytest.mark.train
def test_what_was_measured_comes_before_what_is_inferred(compared):
    falling = {"feature_extraction": make_layers(1, FALLING)}
    own = compared(linear_probe=0.80, full=0.95)
    shifted = compared(linear_probe=0.80, full=0.60)
    single = compared(seeds=1, linear_probe=0.80, feature_extraction=0.905, full=0.90)
    without_probe = compared(feature_extraction=0.9, full=0.9)
    settled = compared(linear_probe=0.7, feature_extraction=0.9)
    for kind, evidence in (
        ("baseline", make_evidence(without_probe, layers=falling)),
        ("profile", make_evidence(own, shifted, falling)),
        ("shift", add_profile(make_evidence(own, shifted, falling))),
        ("seeds", add_profile(make_evidence(single, None, falling))),
        ("thaw", add_profile(make_evidence(settled, None, falling))),
    ):
        assert next_experiment(evidence).kind == kind
    assert next_experiment(add_profile(make_evidence(settled))) is None


def test_as_json_it_names_what_is_new_of_its_runs_which_are_of_one_arm(shown):
    found = next_experiment(shown(seeds=2, last_block=0.9))
    assert isinstance(found, Experiment)
    assert len({arm_key(one) for one in found.configs}) == 1
    result = experiment_json(found, None)
    assert (result["kind"], result["forecast"], result["inferred"]) == ("baseline", None, False)
    assert [(run["strategy"], run["seed"]) for run in result["runs"]] == [("linear_probe", 0)]
    assert experiment_json(None, None) is None
