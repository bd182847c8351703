import pytest
import torch
from torch import nn

from finetune_core.config import make_config
from finetune_core.errors import ConfigError
from finetune_core.models import network as networks
from finetune_core.models.catalogue import backbone_info
from finetune_core.models.network import build_network, network_stages
from finetune_core.models.stages import Stage
from finetune_core.training.exact_layers import keep_depthwise_exact
from finetune_core.training.freezing import apply
from finetune_core.training.parameter_groups import parameter_groups
from finetune_core.training.stage_plan import (
    StagePlan,
    cut_index,
    describe,
    plan,
    stages_of,
    trainable_parameters,
)


def strategy_of(name, backbone="resnet18", **settings):
    config = make_config({"data": "x", "backbone": backbone, "strategy": name} | settings)
    return plan(config, network_stages(backbone, 3))


def training_stages(strategy):
    return [one.stage for one in strategy if not one.frozen]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("feature_extraction", ["head"]),
        ("last_block", ["layer4", "head"]),
        ("last_two_blocks", ["layer3", "layer4", "head"]),
        ("full", ["stem", "layer1", "layer2", "layer3", "layer4", "head"]),
    ],
)
def test_named_strategies_train_exactly_these_stages_of_resnet(name, expected):
    assert training_stages(strategy_of(name)) == expected


def test_last_block_of_resnet_is_exactly_layer4_and_fc():
    stages = network_stages("resnet18", 3)
    trained = [
        name for stage in stages if stage.name in ("layer4", "head") for name in stage.parameters
    ]
    assert {name.split(".")[0] for name in trained} == {"layer4", "fc"}
    assert trainable_parameters(strategy_of("last_block"), stages) == 8_393_728 + 512 * 3 + 3


def test_head_first_then_everything():
    strategy = strategy_of("linear_probe_then_full", epochs=10)
    assert [one.thaw_epoch for one in strategy] == [6, 6, 6, 6, 6, 1]
    assert [
        one.thaw_epoch for one in strategy_of("linear_probe_then_full", epochs=10, thaw_every=3)
    ] == [4, 4, 4, 4, 4, 1]


def test_gradual_unfreezing_goes_from_the_head_towards_the_input():
    assert [one.thaw_epoch for one in strategy_of("gradual_unfreezing", epochs=12)] == [
        11,
        9,
        7,
        5,
        3,
        1,
    ]


def test_a_stage_that_would_thaw_after_the_end_is_refused():
    with pytest.raises(ConfigError) as error:
        strategy_of("gradual_unfreezing", epochs=5)
    assert list(error.value.problems) == ["thaw_every"]


def test_rates_fall_towards_the_input():
    rates = [one.rate for one in strategy_of("discriminative", layer_decay=0.5)]
    assert rates == [1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1]


def test_the_first_block_is_the_stem_and_the_stage_after_it():
    assert training_stages(strategy_of("first_block")) == ["stem", "layer1", "head"]


def test_norms_only_and_biases_only_count_what_they_train():
    stages = network_stages("resnet18", 3)
    head = 512 * 3 + 3
    assert trainable_parameters(strategy_of("batchnorm_only"), stages) == 9600 + head
    assert trainable_parameters(strategy_of("bias_only"), stages) == 4800 + head


def test_a_network_without_norms_trains_its_head_alone_and_keeps_the_cache():
    strategy = strategy_of("batchnorm_only", backbone="alexnet")
    assert training_stages(strategy) == ["head"]
    assert cut_index(strategy) == len(strategy) - 1


def test_transformers_have_norms_and_biases_too():
    stages = network_stages("vit_b_16", 3)
    for name in ("batchnorm_only", "bias_only"):
        assert (
            30_000 < trainable_parameters(strategy_of(name, backbone="vit_b_16"), stages) < 200_000
        )


@pytest.mark.parametrize(
    ("mode", "trains"), [("auto", True), ("statistics", False), ("frozen", False)]
)
def test_the_batchnorm_setting_decides_for_the_stages_that_train(mode, trains):
    stages = network_stages("resnet18", 3)
    strategy = strategy_of("last_block", batchnorm=mode)
    assert strategy[-2].batchnorm == {"auto": "train"}.get(mode, mode)
    counted = trainable_parameters(strategy, stages)
    assert counted == 8_393_728 + 512 * 3 + 3 - (0 if trains else 5 * 512 * 2)


def test_custom_cut_trains_from_that_stage_on():
    strategy = strategy_of("custom", cut="layer2")
    assert training_stages(strategy) == ["layer2", "layer3", "layer4", "head"]
    assert cut_index(strategy) == 2


def test_custom_rates_freeze_what_they_do_not_name():
    strategy = strategy_of("custom", stage_rates={"layer1": 0.5, "head": 2.0})
    assert training_stages(strategy) == ["layer1", "head"]
    assert [one.rate for one in strategy] == [0, 0.5, 0, 0, 0, 2.0]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"cut": "layer9"}, "cut"),
        ({"stage_rates": {"layer9": 1, "head": 1}}, "stage_rates"),
        ({"stage_rates": {"layer4": 1}}, "stage_rates"),
    ],
)
def test_custom_strategies_that_do_not_fit_are_refused_by_field(settings, field):
    with pytest.raises(ConfigError) as error:
        strategy_of("custom", **settings)
    assert list(error.value.problems) == [field]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
        self.head = nn.Linear(4, 2)


SIZES_A = {"a.0.weight": 12, "a.0.bias": 4, "a.1.weight": 4, "a.1.bias": 4}
NORM_A = ("a.1.weight", "a.1.bias")
TWO_STAGES = (
    Stage(
        "a",
        ("a",),
        tuple(SIZES_A),
        ("a.1.running_mean", "a.1.running_var"),
        24,
        SIZES_A,
        NORM_A,
        NORM_A,
    ),
    Stage(
        "head", ("head",), ("head.weight", "head.bias"), (), 10, {"head.weight": 8, "head.bias": 2}
    ),
)


def two(frozen=True, thaw_epoch=1, batchnorm="frozen", rate=1.0):
    return (
        StagePlan("a", frozen, rate, thaw_epoch, batchnorm),
        StagePlan("head", False, 1.0, 1, "train"),
    )


def test_frozen_stage_has_no_gradients_and_stays_in_eval_while_the_model_trains():
    model = Two()
    apply(two(), TWO_STAGES, model, epoch=1)
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
    apply(two(batchnorm=mode), TWO_STAGES, model, epoch=1)
    before = model.a[1].running_mean.clone()
    model.a(torch.randn(8, 3, 4, 4) + 3)
    assert (not torch.equal(before, model.a[1].running_mean)) == statistics_move
    assert model.a[1].weight.requires_grad == affine_trains
    assert not model.a[0].weight.requires_grad
    assert not model.a[2].training


def test_a_stage_thaws_at_its_epoch_and_not_before():
    model = Two()
    strategy = two(frozen=False, thaw_epoch=3, batchnorm="train")
    apply(strategy, TWO_STAGES, model, epoch=2)
    assert not model.a.training
    assert not any(parameter.requires_grad for parameter in model.a.parameters())
    apply(strategy, TWO_STAGES, model, epoch=3)
    assert model.a.training
    assert all(parameter.requires_grad for parameter in model.a.parameters())


def test_groups_are_one_a_stage_at_its_own_rate():
    groups = parameter_groups(two(frozen=False, rate=0.1), TWO_STAGES, Two(), 0.01, 0.0)
    assert [(group["stage"], group["lr"]) for group in groups] == [
        ("a", pytest.approx(0.001)),
        ("head", 0.01),
    ]


def test_weight_decay_spares_norms_and_biases():
    groups = parameter_groups(two(frozen=False, batchnorm="train"), TWO_STAGES, Two(), 0.01, 0.05)
    decayed = [
        parameter for group in groups if group["weight_decay"] for parameter in group["params"]
    ]
    spared = [
        parameter for group in groups if not group["weight_decay"] for parameter in group["params"]
    ]
    assert sorted(p.ndim for p in decayed) == [2, 4]
    assert {p.ndim for p in spared} == {1}
    assert len(decayed) + len(spared) == len(list(Two().parameters()))


def test_description_is_what_pages_draw():
    rows = describe(two(), TWO_STAGES)
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


@pytest.mark.parametrize("strategy", ["last_block", "prototypes"])
def test_stages_are_those_of_the_network_at_the_size_of_the_run_and_looked_at_once(
    strategy, monkeypatch
):
    name, side, built, real = "timm/mobilenetv4_conv_small", 32, [], networks.create_on_meta
    monkeypatch.setattr(
        networks,
        "create_on_meta",
        lambda *args, **kwargs: built.append(args) or real(*args, **kwargs),
    )
    networks._structure.cache_clear()
    config = make_config(
        {"data": "x", "backbone": name, "image_size": side, "strategy": strategy, "weights": "none"}
    )
    stages = stages_of(config, 3)
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
    images = torch.randn(1, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        frozen = model[0](images)
        trained = model[1](frozen)
        pointwise = model[2](trained)
    assert (frozen.dtype, trained.dtype, pointwise.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.bfloat16,
    )
