"""The runs of a comparison, their order, and their forecast duration."""

from collections import Counter

import pytest

from finetune_core.config import make_config
from finetune_core.data.dataset import load_dataset
from finetune_core.errors import ConfigError
from finetune_core.models.network import build_network
from finetune_core.models.weights import RANDOM
from finetune_core.runs.design import (
    arm_key,
    depends_on_seed,
    design_runs,
    find_missing_baselines,
    forecast_arm,
    forecast_spread,
    group_by_arm,
    run_key,
    set_rates,
)
from finetune_core.training.devices.speed_book import Speed, SpeedBook
from finetune_core.training.strategies.catalogue import STRATEGIES
from tests.factories import shared_images, tiny_config

BASE = make_config({"data": "/pets", "backbone": "efficientnet_lite0", "epochs": 4})


def test_one_run_for_every_strategy_seed_backbone_and_share():
    configs = design_runs(
        BASE, ["full", "last_block"], [0, 1, 2], ["efficientnet_lite0", "resnet18"], [0.5, 1.0]
    )
    assert len(configs) == len({config.model_dump_json() for config in configs}) == 24
    assert Counter(config.seed for config in configs) == {0: 8, 1: 8, 2: 8}
    assert {len(some) for some in group_by_arm(configs).values()} == {3}


def test_all_else_is_equal():
    configs = design_runs(BASE, ["full", "feature_extraction", "from:block5"], [3, 4], [], [0.25])
    varied = {"strategy", "cut", "stage_rates", "seed", "train_fraction"}
    assert {config.model_dump_json(exclude=varied) for config in configs} == {
        BASE.model_dump_json(exclude=varied)
    }
    assert {config.split_seed for config in configs} == {BASE.split_seed}


@pytest.mark.train
def test_equal_seeds_start_from_the_same_head():
    configs = design_runs(
        BASE.model_copy(update={"weights": RANDOM}), ["full", "feature_extraction"], [0, 1]
    )
    heads = {}
    for config in configs:
        network = build_network(config.backbone, config.initial_weights, 3, config.seed)
        name = network.stages[-1].parameters[0]
        heads.setdefault(config.seed, []).append(network.model.state_dict()[name])
    assert (heads[0][0] == heads[0][1]).all()
    assert (heads[1][0] == heads[1][1]).all()
    assert (heads[0][0] != heads[1][0]).any()


def test_shallow_cuts_train_first_and_what_has_no_trunk_last():
    configs = design_runs(BASE, ["full", "feature_extraction", "last_block", "from:block5"], [0, 1])
    order = [config.cut or config.strategy for config in configs]
    assert order == [
        name for name in ("block5", "last_block", "feature_extraction", "full") for _ in range(2)
    ]


def test_what_is_fitted_without_epochs_gets_one_seed_unless_the_seed_draws_its_images():
    fitted = ["linear_probe", "prototypes", "nearest_neighbours"]
    made = design_runs(BASE, [*fitted, "last_block"], [3, 4], fractions=[0.5, 1.0])
    seeds = Counter((config.strategy, config.train_fraction) for config in made)
    assert seeds == {
        **{(name, 1.0): 1 for name in fitted},
        **{(name, 0.5): 2 for name in fitted},
        ("last_block", 1.0): 2,
        ("last_block", 0.5): 2,
    }
    assert {config.seed for config in made if not depends_on_seed(config)} == {3}


@pytest.mark.parametrize(("share", "seeds"), [(1.0, (0,)), (0.5, (0, 1))])
def test_runs_lack_one_linear_probe_per_backbone_and_draw_of_images(share, seeds):
    backbones = ("efficientnet_lite0", "resnet18")
    trained = design_runs(BASE, ["full", "last_block"], [0, 1], backbones, [share])
    trained += design_runs(BASE, ["from:block5"], [0], fractions=[share])
    lacking = find_missing_baselines(trained)
    assert {(config.strategy, config.cut) for config in lacking} == {("linear_probe", None)}
    assert [(config.backbone, config.seed) for config in lacking] == [
        (backbone, seed) for backbone in backbones for seed in seeds
    ]
    assert find_missing_baselines([*trained, lacking[0]]) == lacking[len(seeds) :]
    assert find_missing_baselines([*trained, *lacking]) == find_missing_baselines(lacking) == []


def test_a_linear_probe_is_the_same_baseline_whatever_its_learning_rate():
    probe, trained = design_runs(BASE, ["linear_probe"], [0]), design_runs(BASE, ["full"], [0])
    other = [config.model_copy(update={"learning_rate": 0.5, "epochs": 3}) for config in probe]
    assert run_key(other[0]) == run_key(probe[0])
    assert not find_missing_baselines([*other, *trained])


def test_a_linear_probe_on_other_weights_or_another_input_is_no_baseline():
    probe, trained = design_runs(BASE, ["linear_probe"], [0]), design_runs(BASE, ["full"], [0])
    assert not find_missing_baselines([*probe, *trained])
    means = (0.5, 0.5, 0.5)
    for changed in (
        {"from_run": "an/earlier/run"},
        {"weights": "none"},
        {"image_size": 64},
        {"crop_pct": 0.5},
        {"mean": means, "std": means},
        {"interpolation": "bicubic"},
    ):
        other = [config.model_copy(update=changed) for config in trained]
        (lacking,) = find_missing_baselines([*probe, *other])
        assert lacking.strategy == "linear_probe"
        assert {name: getattr(lacking, name) for name in changed} == changed


def test_what_is_named_twice_trains_once():
    assert len(design_runs(BASE, ["full", "full"], [0, 0, 1])) == 2


def test_a_stage_makes_a_strategy_and_custom_is_that_of_the_base():
    cut = design_runs(BASE, ["from:block5"], [0])[0]
    assert (cut.strategy, cut.cut) == ("custom", "block5")
    own = BASE.model_copy(update={"strategy": "custom", "cut": "block6"})
    assert design_runs(own, ["custom"], [0])[0].cut == "block6"
    assert design_runs(own, ["full"], [0])[0].cut is None


@pytest.mark.parametrize(
    ("strategies", "seeds", "named"),
    [
        ([], [0], "strategies"),
        (["full"], [], "seeds"),
        (["custom"], [0], "strategies"),
        (["from:nowhere"], [0], "cut"),
        (["no_such"], [0], "strategy"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(strategies, seeds, named):
    with pytest.raises(ConfigError) as caught:
        design_runs(BASE, strategies, seeds)
    assert named in caught.value.problems


def test_every_strategy_but_custom_can_be_compared():
    names = [name for name in STRATEGIES if name != "custom"]
    assert len(
        group_by_arm(design_runs(BASE.model_copy(update={"epochs": 10}), names, [0]))
    ) == len(names)


def test_rates_that_were_found_go_to_their_arm():
    configs = design_runs(BASE, ["full", "last_block"], [0, 1])
    full = arm_key(next(config for config in configs if config.strategy == "full"))
    changed = set_rates(configs, {full: 0.01})
    assert {(config.strategy, config.learning_rate) for config in changed} == {
        ("full", 0.01),
        ("last_block", BASE.learning_rate),
    }


def test_only_the_first_run_of_an_arm_pays_for_the_frozen_stages(tmp_path):
    folder = shared_images(red=20, blue=20)
    base = tiny_config(folder, epochs=4)
    dataset, book = load_dataset(folder, **base.split_settings), SpeedBook(tmp_path / "speeds.json")
    head, full = (design_runs(base, [name], [0, 1, 2]) for name in ("feature_extraction", "full"))
    assert forecast_arm(head, dataset, book) is None
    book.learn_decoding(dataset.fingerprint, 32, 0.001)
    for config in (head[0], full[0]):
        trunk = 1.0 if config is head[0] else 0.0
        book.learn(
            config,
            Speed(trunk, 0.01, 0.01, 100 if trunk else 0, 1, 0.0),
        )
    first, *others = forecast_arm(head, dataset, book)
    assert others[0] == others[1]
    assert first - others[0] == pytest.approx(40 * (1.0 + 0.001), rel=0.05)
    assert len(set(forecast_arm(full, dataset, book))) == 1


@pytest.mark.parametrize(
    ("arms", "machines", "seconds", "saved"),
    [
        ([[10, 4, 4]], [1], 18, 12),  # as one after the other
        ([[10, 4, 4]], [1, 1], 14, 6),  # each machine pays once for the frozen stages
        ([[10, 4, 4]], [2], 14, 6),  # the second run begins before the first has computed anything
        # no place waits for the machine that has the frozen stages
        ([[10, 4], [10, 4]], [1, 1], 20, 0),
        ([[10, 10]], [1, 1], 10, 0),
        ([[5]], [3, 1], 5, 0),
    ],
)
def test_a_comparison_on_several_machines_is_forecast(arms, machines, seconds, saved):
    found = forecast_spread(arms, machines)
    assert (found.seconds, found.saved) == (seconds, saved)
