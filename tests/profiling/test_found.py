"""Reconstruction of a profile from its runs alone."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune_core.profiling.found import find_setup
from finetune_core.profiling.plan import advance
from finetune_core.profiling.settings import Setup, set_up
from finetune_core.runs.design import run_key
from tests.factories import tiny_config
from tests.profiling.test_plan import LOSSES, Planted

STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4", "head")


@pytest.fixture(scope="module")
def setup(home_of_shared_fixtures):
    base = tiny_config(epochs=12, schedule="cosine", warmup_epochs=1.2)
    return set_up(base.model_copy(update={"auto": ("learning_rate",)}), num_images=100)


def make_runs(setup: Setup, rounds=None):
    """Return the runs of the first rounds of a profile as the store lists them."""
    planted = Planted({}, LOSSES)
    planted.finish(setup)
    configs = [config for _, configs in planted.rounds[:rounds] for config in configs]
    sizes = dict.fromkeys(STAGES, 9) | dict(setup.sizes)
    rows = [{"name": name, "parameters": sizes[name]} for name in STAGES]
    started = {"stages": rows}
    return [
        SimpleNamespace(
            run_dir=Path("runs"),
            config=config,
            history=SimpleNamespace(started=started),
            started=started,
        )
        for config in reversed(configs)
    ], planted


def find(setup, runs):
    return find_setup(runs, setup.stage.data, setup.stage.backbone)


def test_the_runs_of_a_whole_profile_tell_what_was_asked_for(setup):
    runs, planted = make_runs(setup)
    found = find(setup, runs)
    assert (found.sizes, found.seeds) == (setup.sizes, (0, 1))
    assert advance(found, planted) == advance(setup, planted)
    assert run_key(found.make_full_config(1)) == run_key(setup.make_full_config(1))


def test_the_short_round_tells_how_long_the_others_are(setup):
    runs, _ = make_runs(setup, rounds=2)
    found = find(setup, runs)
    rates = {"layer4": 3.0}
    assert run_key(found.make_stages_config(["layer4"], 0, rates)) == run_key(
        setup.make_stages_config(["layer4"], 0, rates)
    )
    assert run_key(found.make_short_config("conv1", 3.0)) == run_key(
        setup.make_short_config("conv1", 3.0)
    )


def test_other_seeds_and_fewer_stages_are_found(home_of_shared_fixtures):
    asked = set_up(tiny_config(epochs=12), stages=("layer2", "layer3", "layer4"), seeds=(4, 7, 8))
    runs, _ = make_runs(asked)
    found = find(asked, runs)
    assert (found.stages, found.seeds) == (("layer2", "layer3", "layer4"), (4, 7, 8))


def test_a_profile_of_one_seed_is_complete_when_it_ends(home_of_shared_fixtures):
    asked = set_up(tiny_config(epochs=12), seeds=(5,))
    runs, planted = make_runs(asked)
    found = find(asked, runs)
    assert found.seeds == (5,)
    assert advance(found, planted).wanted == ()
    runs, planted = make_runs(asked, rounds=3)
    assert find(asked, runs).seeds == (0, 1), "other seeds may follow"


def test_runs_of_other_data_or_another_backbone_are_none_of_it(setup):
    runs, _ = make_runs(setup)
    assert find_setup(runs, "elsewhere", setup.stage.backbone) is None
    assert find_setup(runs, setup.stage.data, "resnet18") is None
    assert find_setup([], setup.stage.data, setup.stage.backbone) is None


def test_the_latest_of_two_profiles_is_shown(setup):
    other = set_up(tiny_config(epochs=12, learning_rate=0.5))
    newer, older = make_runs(other)[0], make_runs(setup)[0]
    assert find(setup, [*newer, *older]).stage.learning_rate == 0.5
