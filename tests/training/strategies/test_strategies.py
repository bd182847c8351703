"""Tests of strategies: what they plan to train, and that a training follows the plan."""

import pytest
import torch
from torch import nn

from finetune_core.config import make_config
from finetune_core.errors import ConfigError
from finetune_core.models import network as networks
from finetune_core.models.catalogue import backbone_info
from finetune_core.models.nearest import NearestNeighbours
from finetune_core.models.network import build_network, network_stages
from finetune_core.models.stages import Stage
from finetune_core.runs.store import read_run
from finetune_core.training import events, loop
from finetune_core.training.checkpoints.files import LAST, load_tensors
from finetune_core.training.predictions import load_predictions
from finetune_core.training.step.exact_layers import keep_depthwise_exact
from finetune_core.training.strategies.catalogue import STRATEGIES
from finetune_core.training.strategies.freezing import apply_strategy
from finetune_core.training.strategies.parameter_groups import parameter_groups
from finetune_core.training.strategies.stage_plan import (
    StagePlan,
    count_trainable_parameters,
    cut_index,
    describe_strategy,
    list_frozen_tensors,
    list_stages,
    plan_strategy,
)
from tests.factories import TINY_BACKBONE, tiny_config
from tests.training.fits import ends_epoch, fit_all, fit_until, record_run

EPOCHS = {"linear_probe_then_full": 2, "gradual_unfreezing": 6}  # until all of it trains


@pytest.mark.journey
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_trains_what_it_declares_and_nothing_else(strategy, tmp_path, monkeypatch):
    check_training(tmp_path, monkeypatch, strategy=strategy, epochs=EPOCHS.get(strategy, 1))


@pytest.mark.train
@pytest.mark.parametrize(
    "settings",
    [{"stage_rates": {"layer1": 1.0, "head": 1.0}}, {"batchnorm": "statistics"}],
    ids=str,
)
def test_stages_frozen_behind_one_that_trains_stay(settings, tmp_path, monkeypatch):
    strategy = "custom" if "stage_rates" in settings else "last_two_blocks"
    check_training(tmp_path, monkeypatch, strategy=strategy, epochs=1, **settings)


def check_training(tmp_path, monkeypatch, **settings):
    audited, real = [], loop.audit_frozen
    monkeypatch.setattr(loop, "audit_frozen", lambda job: audited.append(job) or real(job))
    if settings["strategy"] == "custom" and "stage_rates" not in settings:
        settings["cut"] = "layer3"
    config = tiny_config(**settings)
    folder, seen = record_run(config, tmp_path)
    assert isinstance(seen[-1], events.RunFinished)
    run = read_run(folder)
    assert (run.status, run.is_evaluable) == ("finished", True)
    assert set(load_predictions(folder)["split"]) == {"val", "test"}
    network = audited[-1].network
    start = "none" if settings["strategy"] == "from_scratch" else config.initial_weights
    before = build_network(TINY_BACKBONE, start, 3, config.seed, 32).model.state_dict()
    now = network.model.state_dict()
    frozen = 0
    for stage, planned in zip(network.stages, plan_strategy(config, network.stages), strict=True):
        if stage.name == "head" and isinstance(network.head_layers[0], NearestNeighbours):
            continue  # stored features in the place of the head
        kept = set(list_frozen_tensors(planned, stage))
        frozen += len(kept)
        changed = {
            name
            for name in (*stage.parameters, *stage.buffers)
            if not torch.equal(now[name], before[name])
        }
        assert not changed & kept
        assert planned.frozen or changed, f"{stage.name} trains, but nothing in it changed"
        if settings["strategy"] == "bias_only" and stage.name != "head":
            assert all(name.endswith("bias") for name in changed)
        if settings["strategy"] == "batchnorm_only" and stage.name != "head":
            assert changed <= {*stage.norms, *stage.buffers}
            assert any("running_mean" in name for name in changed)
    assert seen[-1].frozen_tensors == frozen


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(
            name,
            marks=getattr(
                pytest.mark,
                "train" if name in ("last_block", "linear_probe_then_full") else "exhaustive",
            ),
        )
        for name in STRATEGIES
        if name not in ("custom", "from_scratch")
    ],
)
def test_every_strategy_learns_colours_from_pretrained_weights(strategy, tmp_path):
    config = tiny_config(backbone="efficientnet_lite0", strategy=strategy, epochs=9, batch_size=10)
    assert fit_all(config, tmp_path)[-1].val_accuracy >= 0.8


def strategy_of(name, backbone="resnet18", **settings):
    config = make_config({"data": "x", "backbone": backbone, "strategy": name} | settings)
    return plan_strategy(config, network_stages(backbone, 3))


def training_stages(strategy):
    return [one.stage for one in strategy if not one.frozen]


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("feature_extraction", {}, "head"),
        ("last_block", {}, "layer4 head"),
        ("last_two_blocks", {}, "layer3 layer4 head"),
        ("full", {}, "stem layer1 layer2 layer3 layer4 head"),
        ("first_block", {}, "stem layer1 head"),
        ("custom", {"cut": "layer2"}, "layer2 layer3 layer4 head"),
        ("custom", {"stage_rates": {"layer1": 0.5, "head": 2.0}}, "layer1 head"),
        ("batchnorm_only", {"backbone": "alexnet"}, "head"),
    ],
)
def test_strategies_train_exactly_these_stages(name, settings, expected):
    strategy = strategy_of(name, **settings)
    assert training_stages(strategy) == expected.split()
    names = [one.stage for one in strategy]
    assert cut_index(strategy) == names.index(expected.split()[0])  # the rest is cached


@pytest.mark.parametrize(
    ("name", "settings", "epochs"),
    [
        ("linear_probe_then_full", {"epochs": 10}, [6, 6, 6, 6, 6, 1]),
        ("linear_probe_then_full", {"epochs": 10, "thaw_every": 3}, [4, 4, 4, 4, 4, 1]),
        ("gradual_unfreezing", {"epochs": 12}, [11, 9, 7, 5, 3, 1]),
    ],
)
def test_stages_thaw_from_the_head_towards_the_input(name, settings, epochs):
    assert [one.thaw_epoch for one in strategy_of(name, **settings)] == epochs


def test_rates_fall_towards_the_input_or_are_as_they_are_set():
    rates = [one.rate for one in strategy_of("discriminative", layer_decay=0.5)]
    assert rates == [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]
    custom = strategy_of("custom", stage_rates={"layer1": 0.5, "head": 2.0})
    assert [one.rate for one in custom] == [0, 0.5, 0, 0, 0, 2.0]


@pytest.mark.parametrize(
    ("name", "settings", "counted"),
    [
        ("last_block", {}, 8_393_728),
        ("last_block", {"batchnorm": "auto"}, 8_393_728),
        ("last_block", {"batchnorm": "statistics"}, 8_393_728 - 5 * 512 * 2),
        ("last_block", {"batchnorm": "frozen"}, 8_393_728 - 5 * 512 * 2),
        ("batchnorm_only", {}, 9600),
        ("bias_only", {}, 4800),
    ],
)
def test_parameters_that_train_are_counted_beside_those_of_the_head(name, settings, counted):
    strategy = strategy_of(name, **settings)
    head = 512 * 3 + 3
    assert count_trainable_parameters(strategy, network_stages("resnet18", 3)) == counted + head
    mode = settings.get("batchnorm", "auto")
    assert name != "last_block" or strategy[-2].batchnorm == {"auto": "train"}.get(mode, mode)


def test_transformers_have_norms_and_biases_too():
    stages = network_stages("vit_b_16", 3)
    for name in ("batchnorm_only", "bias_only"):
        strategy = strategy_of(name, backbone="vit_b_16")
        assert 30_000 < count_trainable_parameters(strategy, stages) < 200_000


@pytest.mark.parametrize(
    ("name", "settings", "field"),
    [
        ("custom", {"cut": "layer9"}, "cut"),
        ("custom", {"stage_rates": {"layer9": 1, "head": 1}}, "stage_rates"),
        ("custom", {"stage_rates": {"layer4": 1}}, "stage_rates"),
        ("gradual_unfreezing", {"epochs": 5}, "thaw_every"),  # a stage would thaw after the end
    ],
)
def test_settings_that_do_not_fit_are_refused_by_field(name, settings, field):
    with pytest.raises(ConfigError) as error:
        strategy_of(name, **settings)
    assert list(error.value.problems) == [field]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
        self.head = nn.Linear(4, 2)


SIZES_A = {"a.0.weight": 12, "a.0.bias": 4, "a.1.weight": 4, "a.1.bias": 4}
NORM_A = ("a.1.weight", "a.1.bias")
BUFFERS_A = ("a.1.running_mean", "a.1.running_var")
SIZES_HEAD = {"head.weight": 8, "head.bias": 2}
TWO_STAGES = (
    Stage("a", ("a",), tuple(SIZES_A), BUFFERS_A, 24, SIZES_A, NORM_A, NORM_A),
    Stage("head", ("head",), tuple(SIZES_HEAD), (), 10, SIZES_HEAD),
)


def two(frozen=True, thaw_epoch=1, batchnorm="frozen", rate=1.0):
    return (
        StagePlan("a", frozen, rate, thaw_epoch, batchnorm),
        StagePlan("head", False, 1.0, 1, "train"),
    )


def test_frozen_stage_has_no_gradients_and_stays_in_eval_while_the_model_trains():
    model = Two()
    apply_strategy(two(), TWO_STAGES, model, epoch=1)
    assert model.training
    assert model.head.training
    assert not any(module.training for module in model.a.modules())
    assert not any(parameter.requires_grad for parameter in model.a.parameters())
    assert all(parameter.requires_grad for parameter in model.head.parameters())


@pytest.mark.parametrize(
    ("mode", "statistics_move", "affine_trains"),
    [("frozen", False, False), ("statistics", True, False), ("train", True, True)],
)
def test_batchnorm_modes_of_a_frozen_stage(mode, statistics_move, affine_trains):
    model = Two()
    apply_strategy(two(batchnorm=mode), TWO_STAGES, model, epoch=1)
    before = model.a[1].running_mean.clone()
    model.a(torch.randn(8, 3, 4, 4) + 3)
    assert (not torch.equal(before, model.a[1].running_mean)) == statistics_move
    assert model.a[1].weight.requires_grad == affine_trains
    assert not model.a[0].weight.requires_grad
    assert not model.a[2].training


def test_a_stage_thaws_at_its_epoch_and_not_before():
    model = Two()
    strategy = two(frozen=False, thaw_epoch=3, batchnorm="train")
    for epoch, trains in ((2, False), (3, True)):
        apply_strategy(strategy, TWO_STAGES, model, epoch)
        assert model.a.training == trains
        assert {parameter.requires_grad for parameter in model.a.parameters()} == {trains}


def test_groups_are_one_a_stage_at_its_own_rate():
    groups = parameter_groups(two(frozen=False, rate=0.1), TWO_STAGES, Two(), 0.01, 0.0)
    assert [(group["stage"], group["lr"]) for group in groups] == [
        ("a", pytest.approx(0.001)),
        ("head", 0.01),
    ]


def test_weight_decay_spares_norms_and_biases():
    groups = parameter_groups(two(frozen=False, batchnorm="train"), TWO_STAGES, Two(), 0.01, 0.05)
    decayed, spared = (
        [
            one.ndim
            for group in groups
            if bool(group["weight_decay"]) == on
            for one in group["params"]
        ]
        for on in (True, False)
    )
    assert (sorted(decayed), set(spared)) == ([2, 4], {1})
    assert len(decayed) + len(spared) == len(list(Two().parameters()))


def test_description_is_what_pages_draw():
    rows = describe_strategy(two(), TWO_STAGES)
    assert rows[0] == {
        "name": "a",
        "parameters": 24,
        "trains": False,
        "trained": 0,
        "rate": 1.0,
        "thaw_epoch": 1,
        "part": "all",
    }
    assert (rows[1]["trains"], rows[1]["trained"]) == (True, 10)


@pytest.mark.train
def test_stages_are_those_of_the_network_at_the_size_of_the_run_and_looked_at_once(monkeypatch):
    name, side, built, real = "timm/mobilenetv4_conv_small", 32, [], networks.create_on_meta
    monkeypatch.setattr(
        networks,
        "create_on_meta",
        lambda *args, **kwargs: built.append(args) or real(*args, **kwargs),
    )
    networks._load_structure.cache_clear()
    for strategy in ("last_block", "prototypes"):
        settings = {"backbone": name, "image_size": side, "strategy": strategy, "weights": "none"}
        stages = list_stages(make_config({"data": "x"} | settings), 3)
    network = build_network(name, "none", 3, 0, side)
    assert [stage.name for stage in stages] == [stage.name for stage in network.stages]
    assert len(stages) < len(network_stages(name, 3))  # at its own size it has more
    assert [side for _, side, _ in built] == [side, backbone_info(name).image_size]


def test_depthwise_convolutions_that_train_run_in_fp32_under_autocast():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1)
    )
    stages = tuple(Stage(n, (n,), (f"{n}.weight", f"{n}.bias"), (), 1) for n in "012")
    strategy = tuple(StagePlan(n, n == "0", 1.0, 1, "frozen") for n in "012")
    keep_depthwise_exact(strategy, stages, model)
    found, output = [], torch.randn(1, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        for layer in model:
            output = layer(output)
            found.append(output.dtype)
    assert found == [torch.bfloat16, torch.float32, torch.bfloat16]


def test_stages_are_what_they_were_until_they_thaw(tmp_path):
    config = tiny_config(strategy="linear_probe_then_full", epochs=2, thaw_every=1)
    before = build_network(
        TINY_BACKBONE, config.initial_weights, 3, config.seed, 32
    ).model.state_dict()
    _, training = fit_until(config, tmp_path, ends_epoch(2))  # what is kept is of the first epoch
    kept, _ = load_tensors(tmp_path, LAST)
    changed = {
        name
        for name, tensor in kept.items()
        if "/" not in name and not torch.equal(tensor, before[name])
    }
    assert changed == {"fc.weight", "fc.bias"}
    training.close()
