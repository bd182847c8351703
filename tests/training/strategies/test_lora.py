"""Tests of LoRA: weights are start plus factors, and nothing else of a network moves."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import conv2d, cross_entropy, linear, scaled_dot_product_attention

from finetune_core.config import make_config
from finetune_core.data.dataset import load_dataset
from finetune_core.errors import ConfigError, RunError
from finetune_core.models.catalogue import backbone_info
from finetune_core.models.network import Network, build_network, network_stages
from finetune_core.models.stages import derive_stages
from finetune_core.training import events
from finetune_core.training.checkpoints.files import BEST, LAST, checkpoint_path, load_tensors
from finetune_core.training.checkpoints.networks import load_best_network
from finetune_core.training.devices.device import Device
from finetune_core.training.devices.speed_book import Speed
from finetune_core.training.forecast.forecast import compute_forecast
from finetune_core.training.prepare import check_config, prepare
from finetune_core.training.step.compute import StepRule, train_step
from finetune_core.training.step.loss_scale import LossScale
from finetune_core.training.step.optimizers import make_optimizer
from finetune_core.training.strategies import lora
from finetune_core.training.strategies.freezing import apply_strategy
from finetune_core.training.strategies.lora import make_low_rank
from finetune_core.training.strategies.stage_plan import (
    count_trainable_parameters,
    cut_index,
    describe_strategy,
    plan_strategy,
)
from finetune_core.work import finish
from tests.factories import TINY_BACKBONE, tiny_config
from tests.training.fits import fit_all, only

CPU = Device("cpu", "a processor", "fp32")
RANK = 3


@pytest.fixture
def config():
    return partial(tiny_config, epochs=1, strategy="lora", lora_from="layer3", lora_rank=4)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens):
        normed = self.norm(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        return tokens + self.mlp(tokens)


class Attending(nn.Module):
    """A small transformer with torch's own attention, which never calls its output projection."""

    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 8, 8)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, 3)

    def forward(self, images):
        return self.head(self.blocks(self.stem(images).flatten(2).transpose(1, 2)).mean(1))


def attending():
    torch.manual_seed(0)
    model, before = Attending().eval(), Attending().eval()
    before.load_state_dict(model.state_dict())
    stages = derive_stages(model, ["head"], 32)
    return Network(model, before, stages, ("head",), "", backbone_info("resnet18")), 32


NETWORKS = {
    "nn.MultiheadAttention": attending,
    "ViT of timm": lambda: (build_network("timm/test_vit", "none", 3, 0, 64), 64),
    # Its convolutions pad in their own way.
    "CNN": lambda: (build_network("efficientnet_lite0", "none", 3, 0), 64),
}


def planned(network, **settings):
    return plan_strategy(
        make_config({"data": "x", "strategy": "lora", "lora_rank": RANK} | settings), network.stages
    )


def randomize_factors(network, strategy):
    """Return merged factors of which none is zero."""
    factors = make_low_rank(network, strategy, 0)
    torch.manual_seed(1)
    with torch.no_grad():
        for one in factors.factors.values():
            one.up.normal_(0, 0.3 / len(one.up) ** 0.5)
    factors.merge()
    return factors


def unmerged(model, factors):
    """Make layers compute their initial output, and the factors' part beside it."""

    def beside(name, layer):
        one = factors.factors[name]
        start = one.start.view_as(one.weight)
        if isinstance(layer, nn.Conv2d):
            own = copy.deepcopy(layer)  # which pads in its own way
            down = {"weight": one.down.view(-1, *one.weight.shape[1:])}
            down |= {"bias": torch.zeros(len(one.down))} if layer.bias is not None else {}
            up = one.up[:, :, None, None]
            return lambda x: (
                functional_call(own, {"weight": start}, x)
                + one.scale * conv2d(functional_call(own, down, x), up)
            )
        bias = layer.in_proj_bias if isinstance(layer, nn.MultiheadAttention) else layer.bias
        return lambda x: linear(x, start, bias) + one.scale * (x @ one.down.T) @ one.up.T

    def attend(project, end, heads, queries):
        count, tokens, width = queries.shape
        parts = (
            project(queries).view(count, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        )
        return (
            end(scaled_dot_product_attention(*parts).transpose(1, 2).reshape(count, tokens, width)),
        )

    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            project = beside(f"{path}.in_proj_weight", module)
            end = beside(f"{path}.out_proj.weight", module.out_proj)
            given = project, end, module.num_heads
            module.forward = lambda queries, _keys, _values, need_weights, given=given: attend(
                *given, queries
            )
        elif f"{path}.weight" in factors.factors:
            module.forward = beside(f"{path}.weight", module)


@pytest.mark.parametrize("name", NETWORKS)
def test_merged_weights_answer_as_factors_beside_frozen_weights_do(name):
    network, side = NETWORKS[name]()
    images = torch.randn(4, 3, side, side)
    with torch.no_grad():
        before = network.model(images)
        factors = randomize_factors(network, planned(network))
        merged = network.model(images)
        unmerged(network.model, factors)
        beside = network.model(images)
    torch.testing.assert_close(merged, beside, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(merged, before, atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_steps_gradients_are_those_that_autograd_gives_the_factors(name):
    network, side = NETWORKS[name]()
    strategy = planned(network)
    factors = randomize_factors(network, strategy)
    apply_strategy(strategy, network.stages, network.model, 1)
    network.model.eval()
    images, labels = torch.randn(4, 3, side, side), torch.tensor([0, 1, 2, 0])
    composed = {
        name: (one.start + one.scale * one.up @ one.down).view_as(one.weight)
        for name, one in factors.factors.items()
    }
    pairs = [tensor for one in factors.factors.values() for tensor in (one.down, one.up)]
    wanted = torch.autograd.grad(
        cross_entropy(functional_call(network.model, composed, images), labels), pairs
    )
    cross_entropy(network.model(images), labels).backward()
    factors.convert_gradients()
    for tensor, gradient in zip(pairs, wanted, strict=True):
        torch.testing.assert_close(tensor.grad, gradient, rtol=1e-4, atol=1e-6)
    assert all(one.weight.grad is None for one in factors.factors.values())


def take_one_step(
    network, strategy, side, *, optimizer="sgd", forward=None, scale=None, device=CPU, **rule
):
    """Take one step and return the factors after it."""
    config = make_config(
        {"data": "x", "strategy": "lora", "optimizer": optimizer, "learning_rate": 0.1}
    )
    factors = make_low_rank(network, strategy, 0)
    apply_strategy(strategy, network.stages, network.model, 1)
    made = make_optimizer(config, strategy, network.stages, network.model, factors)
    torch.manual_seed(2)
    images, labels = torch.randn(6, 3, side, side), torch.arange(6) % 3
    for step in range(2):  # in the first one B is zero, so that A does not move
        done = train_step(
            forward or network.model,
            images,
            labels,
            made,
            device,
            step,
            StepRule(low_rank=factors, **rule),
            scale,
        )
    return factors, done


def test_what_attention_never_calls_trains_too_and_nothing_else_moves():
    network, side = attending()
    strategy = planned(network)
    factors, _ = take_one_step(network, strategy, side)
    assert set(factors.factors) == {
        "stem.weight",
        *(
            f"blocks.{block}.attention.{name}"
            for block in (0, 1)
            for name in ("in_proj_weight", "out_proj.weight")
        ),
        *(f"blocks.{block}.mlp.{layer}.weight" for block in (0, 1) for layer in (0, 2)),
    }
    before, now = network.pretrained.state_dict(), network.model.state_dict()
    moved = {name for name, tensor in now.items() if not torch.equal(tensor, before[name])}
    assert moved == {*factors.factors, "head.weight", "head.bias"}
    for name, one in factors.factors.items():
        change = (now[name] - before[name]).flatten(1).double()
        assert torch.linalg.matrix_rank(change, rtol=1e-4) == RANK, name
        assert torch.equal(now[name], one.compute_weight())


def train_one_step(network=None, **how):
    """Return names and weights of the small transformer after a step."""
    network = network or attending()[0]
    _, done = take_one_step(network, planned(network), 32, **how)
    return network.model.state_dict(), done


def loss_scale():
    return LossScale(torch.tensor(1024.0), torch.zeros((), dtype=torch.int32))


def check_close(found, wanted):
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


class Wrapped(nn.Module):
    """A network times ``factor``, whose memory ends once, in pass ``ends``."""

    def __init__(self, inner, factor=1.0, ends=0):
        super().__init__()
        self.inner, self.factor, self.ends, self.passes = inner, factor, ends, 0

    def forward(self, images):
        self.passes += 1
        if self.passes == self.ends:
            raise torch.OutOfMemoryError("out of memory")
        return self.inner(images) * self.factor


def test_parts_of_a_batch_and_a_loss_scale_make_the_same_step():
    usual, _ = train_one_step()
    for how in ({"micro_batch": 2}, {"scale": loss_scale()}):
        check_close(train_one_step(**how)[0], usual)
    clipped, _ = train_one_step(clip_norm=1e-3)
    assert not torch.allclose(clipped["head.weight"], usual["head.weight"], atol=1e-3)


def test_gradients_of_an_attempt_that_ran_out_of_memory_are_forgotten():
    network, _ = attending()
    found, done = train_one_step(network, forward=Wrapped(network.model, ends=2), micro_batch=4)
    assert done.skipped == 0
    check_close(found, train_one_step(micro_batch=4)[0])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_that_is_skipped_changes_nothing(optimizer):
    network, _ = attending()
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    overflowing, scale = Wrapped(network.model, factor=torch.inf), loss_scale()
    now, done = train_one_step(network, optimizer=optimizer, forward=overflowing, scale=scale)
    assert (done.skipped.item(), scale.factor.item()) == (1, 256)
    assert all(torch.equal(tensor, before[name]) for name, tensor in now.items())


def test_factors_are_counted_without_a_network_and_depthwise_convolutions_have_none():
    stages = network_stages("efficientnet_lite0", 3)
    names = {name for stage in stages for name in stage.matrices}
    assert "blocks.1.0.conv_pw.weight" in names
    assert not [name for name in names if "conv_dw" in name or "classifier" in name or "bn" in name]
    stages = network_stages("resnet18", 3)
    settings = {"data": "x", "backbone": "resnet18", "strategy": "lora", "lora_rank": 8}
    strategy, norms = (
        plan_strategy(make_config(settings | {"lora_from": "layer4"} | more), stages)
        for more in ({}, {"lora_norms": "train"})
    )
    # of layer4's five convolutions, of 512 channels each
    factors = 8 * sum(512 + inputs for inputs in (256 * 9, 512 * 9, 256, 512 * 9, 512 * 9))
    counted = count_trainable_parameters(strategy, stages)
    assert counted == factors + 512 * 3 + 3
    assert cut_index(strategy) == 4
    rows = describe_strategy(strategy, stages)
    assert [row["part"] for row in rows] == ["all"] * 4 + ["lora", "all"]
    assert rows[4]["trained"] == factors
    assert count_trainable_parameters(norms, stages) - counted == 5 * 512 * 2
    assert [one.batchnorm for one in (strategy[4], norms[4])] == ["frozen", "train"]


def test_a_rank_beyond_a_matrix_is_its_own():
    network, _ = attending()
    factors = make_low_rank(network, planned(network, lora_rank=100, lora_alpha=50), 0)
    assert {len(one.down) for one in factors.factors.values()} == {8}
    assert {one.scale for one in factors.factors.values()} == {0.5}


def test_settings_that_do_not_fit_are_refused_by_field(config):
    with pytest.raises(ConfigError, match="lora_from: belongs to lora, not to full"):
        config(strategy="full")
    with pytest.raises(ConfigError, match="l2_sp: pulls whole weights back"):
        config(l2_sp=0.1)
    for stage in ("layer9", "head"):
        said = f"lora_from: there is no stage '{stage}'; the stages of {TINY_BACKBONE} are conv1"
        with pytest.raises(ConfigError, match=said):
            check_config(config(lora_from=stage))
    assert config().strategy_changes("full")["lora_from"] is None


@pytest.mark.train
def test_a_checkpoint_holds_factors_and_the_head_and_makes_a_plain_network(config, tmp_path):
    settings = config(lora_norms="train")
    found = fit_all(settings, tmp_path)
    assert isinstance(found[-1], events.RunFinished)
    tensors, info = load_tensors(tmp_path, BEST)
    network, _ = load_best_network(settings, tmp_path)
    late = network.stages[3:-1]
    matrices = {name for stage in late for name in stage.matrices}
    norms = {name for stage in late for name in (*stage.norms, *stage.buffers)}
    head = {"fc.weight", "fc.bias"}
    factors = {f"{name}.lora_{kind}" for name in matrices for kind in "AB"}
    assert tensors.keys() == factors | norms | head
    before, now = network.pretrained.state_dict(), network.model.state_dict()
    plain = build_network(TINY_BACKBONE, "none", 3, 0, 32).model.state_dict()
    assert now.keys() == plain.keys()
    for name in matrices:
        down, up = tensors[f"{name}.lora_A"], tensors[f"{name}.lora_B"]
        merged = torch.addmm(before[name].flatten(1), up, down, alpha=4.0)
        assert torch.equal(now[name].flatten(1), merged)
        assert not torch.equal(merged, before[name].flatten(1)), name
    others = now.keys() - matrices - norms - head
    assert all(torch.equal(now[name], before[name]) for name in others)
    assert info.epoch == found[-1].best_epoch
    assert checkpoint_path(tmp_path, BEST).stat().st_size < 150_000
    with pytest.raises(RunError, match=r"lora_A has another shape"):
        load_best_network(config(lora_norms="train", lora_rank=2), tmp_path)
    with pytest.raises(RunError, match="tensors of"):
        load_best_network(config(lora_norms="train", lora_from="layer2"), tmp_path)


@pytest.mark.train
def test_the_frozen_stages_are_cached_and_that_changes_nothing(config, tmp_path):
    for where, how in (("memory", "auto"), ("off", "off")):
        found = fit_all(config(cache=how), tmp_path / how)
        assert only(events.RunStarted, found)[0].cache.where == where
    ours, theirs = (load_tensors(tmp_path / how, LAST)[0] for how in ("auto", "off"))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("repeats", [True, False])
def test_the_audit_sees_a_weight_that_is_not_what_its_factors_say(config, monkeypatch, repeats):
    """Rounding is allowed where products do not repeat."""
    factors, network = (job := finish(prepare(config()))).low_rank, job.network
    factors.merge()
    assert not factors.find_unmerged()
    if not repeats:
        monkeypatch.setattr(lora, "_REPEATABLE", ())
    name = next(iter(factors.factors))
    weight = network.model.get_parameter(name).detach()
    largest = float(weight.abs().max())
    weight.view(-1)[0] += 1e-6 * largest
    assert factors.find_unmerged() == ([name] if repeats else [])
    weight.view(-1)[0] += 1e-4 * largest
    assert factors.find_unmerged() == [name]


def test_a_forecast_counts_factors_the_gradients_of_what_they_change_and_the_cache(config):
    speed, dataset = Speed(0.01, 0.02, 0.005, 1000, 5_000_000, 0.0), load_dataset(config().data)
    stages = network_stages(TINY_BACKBONE, 3, 32)

    def memory(**settings):
        """Return the forecast's bytes, without those of parameters that train."""
        found = compute_forecast(config(**settings), dataset, speed, 0.001)
        counted = count_trainable_parameters(plan_strategy(config(**settings), stages), stages)
        assert found.trainable_parameters == counted
        return found.memory_bytes - 12 * counted

    assert memory(lora_rank=1) == memory(lora_rank=8)
    matrices = [shape for stage in stages[3:-1] for shape in stage.matrices.values()]
    beside = memory() - memory(strategy="feature_extraction", lora_from=None)
    assert beside == 4 * sum(rows * columns for rows, columns in matrices)


def test_the_seed_decides_the_first_factors():
    network, _ = attending()
    strategy = planned(network)
    one, again, other = (make_low_rank(network, strategy, seed).tensors for seed in (0, 0, 1))
    for name, tensor in one.items():
        assert torch.equal(tensor, again[name])
        assert torch.equal(tensor, other[name]) == name.endswith("lora_B")
    same = [tensor for name, tensor in one.items() if name.endswith("mlp.0.weight.lora_A")]
    assert not torch.equal(*same)
