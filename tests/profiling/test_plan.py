"""Rounds of a profile, from made-up finished runs."""

import numpy as np
import pytest

from finetune_core.config import make_config
from finetune_core.errors import ConfigError
from finetune_core.profiling.plan import PARTS, Outcome, advance, fit_budget, forecast
from finetune_core.profiling.settings import set_up
from finetune_core.runs.design import PROFILE_RATES, find_profiled_stage, run_key
from tests.factories import tiny_config

STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")
IMAGES = 200


@pytest.fixture(scope="module")
def setup(home_of_shared_fixtures):
    return set_up(tiny_config(epochs=9))


def make_outcome(accuracy, loss=1.0):
    """Return the outcome of a run that is right on the first images only."""
    right = np.arange(IMAGES) < accuracy * IMAGES
    return Outcome("", loss, right, right)


class Planted(dict):
    """Finished runs: every run that was ever wanted, with accuracies by its stages."""

    def __init__(self, accuracies, losses=None):
        super().__init__()
        self.accuracies, self.losses, self.rounds = accuracies, losses or {}, []

    def finish(self, setup, failed=(), parts=tuple(PARTS)):
        """Train round after round, and return the progress at the end."""
        while (progress := advance(setup, self, failed, parts)).wanted:
            self.rounds.append((progress.round, progress.wanted))
            for config in progress.wanted:
                if run_key(config) not in failed:
                    self[run_key(config)] = self.answer(config)
        return progress

    def answer(self, config):
        stages = trained_stages(config) if config.strategy == "custom" else config.strategy
        loss = self.losses.get(stages, 1.0)
        if isinstance(loss, dict):
            loss = loss[config.stage_rates[stages[0]]]
        return make_outcome(self.accuracies.get(stages, 0.5), loss)


def trained_stages(config):
    return tuple(name for name in config.stage_rates if name != "head")


def by_single_stage(**values):
    return {(stage,): value for stage, value in values.items()}


PLAIN = dict.fromkeys(STAGES, 1.0)  # every stage has the learning rate itself
LOSSES = by_single_stage(conv1=0.5, layer1=0.9, layer2=0.9, layer3=0.9, layer4=0.4)


def test_every_run_trains_the_named_stages_and_the_head_from_the_probes_head(setup):
    rates = PLAIN | {"layer1": 3.0}
    config = setup.make_stages_config(("layer4", "layer1"), 3, rates)
    assert config.stage_rates == {"layer1": 3.0, "layer4": 1.0, "head": 1.0}
    assert (config.strategy, config.seed, config.auto) == ("custom", 3, ())
    assert config.initial_head == setup.make_full_config(0).initial_head == "probe"
    # the order in which stages are named is no difference
    assert run_key(config) == run_key(setup.make_stages_config(("layer1", "layer4"), 3, rates))


def test_a_run_with_a_rate_of_its_own_is_none_of_a_profile(setup):
    rates = {
        rate: setup.make_stages_config(["layer4"], 0, {"layer4": rate})
        for rate in (0.1, *PROFILE_RATES)
    }
    assert [find_profiled_stage(one) for one in rates.values()] == [None, "layer4", "layer4"]
    assert find_profiled_stage(setup.make_stages_config(["layer3", "layer4"], 0, PLAIN)) is None


def test_the_auto_recipe_is_that_of_the_last_block_for_all_stages(home_of_shared_fixtures):
    names = ("epochs", "learning_rate", "schedule", "warmup_epochs")
    base = tiny_config(auto=names, batch_size=32)
    made = set_up(base, num_images=320)
    assert (made.stage.learning_rate, made.stage.epochs) == (1e-3, 60)
    assert made.full.learning_rate == 3e-4
    short = made.make_short_config("layer2", 3.0)
    assert (short.epochs, short.warmup_epochs, short.schedule) == (15, 1.5, "cosine")
    assert short.stage_rates["layer2"] == 3.0


def test_rounds_follow_each_other(setup):
    planted = Planted({}, LOSSES)
    progress = planted.finish(setup)
    rounds = [name for name, _ in planted.rounds]
    assert rounds == [
        "probe",
        "short",
        "full_length",
        "seeds",
        "selection",
        *2 * ["full"],
        "third_seeds",
    ]
    short, first, second, selection, *full, third = (configs for _, configs in planted.rounds[1:])
    tried = {
        (*trained_stages(config), config.stage_rates[trained_stages(config)[0]]) for config in short
    }
    assert tried == {(stage, rate) for stage in STAGES for rate in PROFILE_RATES}
    assert {config.epochs for config in short} == {2}
    for seed, configs in enumerate((first, second)):
        expected = {(stage, seed) for stage in ("conv1", "layer4")}
        assert {(*trained_stages(config), config.seed) for config in configs} == expected
    assert {config.epochs for config in (*first, *second)} == {9}
    assert {trained_stages(config) for config in selection} == {("conv1", "layer4")}
    assert [(one.strategy, one.seed) for (one,) in full] == [("full", 0), ("full", 1)]
    assert {(config.strategy, config.seed) for config in third} == {("custom", 2), ("full", 2)}
    assert progress.stopped == ("layer1", "layer2", "layer3")


def test_only_what_may_be_best_is_trained_with_more_seeds(setup):
    stages = {"layer3": 0.6, "layer4": 0.8}
    planted = Planted(
        by_single_stage(**stages) | {"full": 0.7}, by_single_stage(layer3=0.5, layer4=0.4)
    )
    planted.finish(setup)
    runs = [config for _, configs in planted.rounds for config in configs]
    assert [one.seed for one in runs if one.strategy == "full"] == [0]
    both = [one for one in runs if one.strategy == "custom" and len(trained_stages(one)) == 2]
    assert [one.seed for one in both] == [0]
    assert sorted(
        one.seed for one in runs if one == setup.make_stages_config(["layer4"], one.seed, PLAIN)
    ) == [
        0,
        1,
        2,
    ]


def test_of_many_stages_a_quarter_is_trained_with_all_seeds(home_of_shared_fixtures):
    made = set_up(tiny_config(backbone="efficientnet_lite0"))
    losses = {(stage,): float(place) for place, stage in enumerate(made.stages)}
    planted = Planted({}, losses)
    progress = planted.finish(made)
    half = made.stages[: len(made.stages) // 2]
    assert progress.going_on == half
    (second,) = (configs for name, configs in planted.rounds if name == "seeds")
    assert {trained_stages(config) for config in second} == {
        (stage,) for stage in half[: len(half) // 2]
    }


def test_a_deeper_cut_follows_the_shallower_one_that_it_is_computed_from(setup):
    planted = Planted({}, LOSSES)
    planted.finish(setup)
    short = [trained_stages(config)[0] for config in planted.rounds[1][1]]
    assert short[::2] == short[1::2] == ["layer1", "layer2", "layer3", "layer4", "conv1"]


def test_of_equal_losses_the_stage_with_fewer_parameters_goes_on(setup):
    progress = Planted({}).finish(setup)
    assert progress.going_on == ("conv1", "layer1")


@pytest.mark.parametrize(
    ("accuracies", "chosen"),
    [
        (by_single_stage(conv1=0.8, layer4=0.6), ("conv1",)),
        (by_single_stage(conv1=0.6, layer4=0.8), ("layer4",)),
        (by_single_stage(conv1=0.6, layer4=0.8) | {("conv1", "layer4"): 0.95}, ("layer4", "conv1")),
        (by_single_stage(conv1=0.6, layer4=0.8) | {("conv1", "layer4"): 0.805}, ("layer4",)),
    ],
)
def test_a_stage_is_added_only_while_the_gain_is_significant(setup, accuracies, chosen):
    progress = Planted(accuracies, LOSSES).finish(setup)
    assert progress.chosen == chosen
    assert progress.path[0].stage == chosen[0]
    assert progress.path[-1].kept == (len(chosen) == 2)


def test_the_log_loss_breaks_ties_of_the_selection(setup):
    assert Planted({}, LOSSES).finish(setup).chosen == ("layer4",)


def test_a_profile_goes_on_from_the_runs_that_are_finished(setup):
    planted = Planted(by_single_stage(conv1=0.7), LOSSES)
    whole = planted.finish(setup)
    for at in range(len(planted)):
        fewer = Planted(by_single_stage(conv1=0.7), LOSSES)
        fewer.update(list(planted.items())[:at])
        assert fewer.finish(setup) == whole
        assert {*fewer} == {*planted}
    assert advance(setup, planted).wanted == ()


def test_each_stage_has_the_rate_that_was_better_in_the_short_round(setup):
    losses = LOSSES | by_single_stage(conv1={1.0: 0.6, 3.0: 0.5}, layer1={1.0: 0.7, 3.0: 0.9})
    accuracies = by_single_stage(conv1=0.6, layer4=0.8) | {("conv1", "layer4"): 0.95}
    planted = Planted(accuracies, losses)
    progress = planted.finish(setup)
    assert progress.rates == PLAIN | {"conv1": 3.0}
    assert progress.chosen == ("layer4", "conv1")
    long = [one for name, runs in planted.rounds if name != "short" for one in runs]
    rates = [one.stage_rates for one in long if one.strategy == "custom"]
    assert {one["conv1"] for one in rates if "conv1" in one} == {3.0}
    assert {one["layer4"] for one in rates if "layer4" in one} == {1.0}


def test_a_rate_that_cannot_be_trained_leaves_the_other(setup):
    progress = Planted({}, LOSSES).finish(setup, {run_key(setup.make_short_config("conv1", 1.0))})
    assert progress.rates["conv1"] == 3.0
    assert "conv1" in progress.going_on


def test_of_two_stages_none_is_stopped(home_of_shared_fixtures):
    progress = Planted({}).finish(set_up(tiny_config(), stages=("layer4", "layer3")))
    assert progress.going_on == ("layer3", "layer4")


def test_one_seed_means_one_run_an_arm(home_of_shared_fixtures):
    planted = Planted({})
    planted.finish(set_up(tiny_config(), seeds=(5,)))
    assert {config.seed for _, configs in planted.rounds for config in configs} == {5}
    assert planted.rounds[-1][0] == "full"


def test_a_share_of_the_images_is_drawn_by_the_seed_so_each_has_its_probe(home_of_shared_fixtures):
    made = set_up(tiny_config(train_fraction=0.5))
    assert [config.seed for config in made.make_probe_configs()] == [0, 1]


def test_a_stage_that_cannot_be_trained_is_done_without(setup):
    failed = {run_key(setup.make_short_config("layer4", rate)) for rate in PROFILE_RATES} | {
        run_key(setup.make_full_config(1))
    }
    progress = Planted({}, LOSSES).finish(setup, failed)
    assert "layer4" not in (*progress.going_on, *progress.stopped)
    assert progress.chosen == ("conv1",)


def test_without_the_probe_there_is_no_profile(setup):
    (probe,) = setup.make_probe_configs()
    with pytest.raises(ConfigError, match="linear probe failed"):
        Planted({}).finish(setup, {run_key(probe)})


def test_stages_and_seeds_are_checked(home_of_shared_fixtures):
    with pytest.raises(ConfigError, match=r"no stage layer9; the stages of .* are conv1"):
        set_up(tiny_config(), stages=("layer9",))
    with pytest.raises(ConfigError, match="seeds"):
        set_up(tiny_config(), seeds=())


def test_a_forecast_counts_what_is_trained_when_one_stage_is_enough(setup):
    expected = forecast(setup, {})
    planted = Planted({}, by_single_stage(conv1=0.1, layer1=0.2, layer2=1, layer3=1, layer4=1))
    planted.finish(setup)
    assert {run_key(config) for config in expected} == {*planted}
    assert forecast(setup, planted) == []


def test_a_budget_leaves_parts_out_in_order(setup):
    def parts_for(minutes):
        return fit_budget(setup, {}, (), len, minutes)

    whole = len(forecast(setup, {}))
    assert parts_for(whole) == tuple(PARTS)
    assert parts_for(whole - 1) == tuple(PARTS)[1:]
    assert parts_for(whole - 3) == tuple(PARTS)[2:]
    assert parts_for(1) == ()
    planted = Planted({}, LOSSES)
    progress = planted.finish(setup, parts=())
    assert progress.left_out == tuple(PARTS)
    assert {config.seed for _, configs in planted.rounds for config in configs} == {0}
    # what is finished counts, whatever there is time for
    planted.finish(setup)
    assert advance(setup, planted, parts=()).left_out == ()


def test_settings_of_the_profile_are_settings_of_ordinary_runs(setup):
    config = setup.make_short_config("layer1", 1.0)
    assert make_config(config.model_dump()) == config
