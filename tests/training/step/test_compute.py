"""Tests of single steps and their settings: schedules, blending, averages, early stopping."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from finetune_core.config import make_config
from finetune_core.models.network import build_network
from finetune_core.training import events
from finetune_core.training.checkpoints.files import load_tensors
from finetune_core.training.devices.device import Device
from finetune_core.training.step import compute
from finetune_core.training.step.compute import StepRule, train_step
from finetune_core.training.step.optimizers import take_step
from finetune_core.training.step.schedules import learning_rate_factor
from finetune_core.training.step.weight_ema import WeightEMA
from tests.factories import TINY_BACKBONE, tiny_config
from tests.training.fits import fit_all, only

CPU = Device("cpu", "a processor", "fp32")


@pytest.mark.parametrize(
    ("metric", "settings"),
    [("val_accuracy", {"learning_rate": 1e-7}), ("val_macro_f1", {})],
)
def test_early_stopping_ends_the_run_after_its_patience(tmp_path, metric, settings):
    config = tiny_config(
        strategy="feature_extraction", early_stopping=metric, patience=2, epochs=30, **settings
    )
    found = fit_all(config, tmp_path)
    ended = only(events.EpochEnded, found)
    scores = [
        event.val_accuracy if metric == "val_accuracy" else event.val_scores["macro_f1"]
        for event in ended
    ]
    assert isinstance(found[-1], events.RunFinished)
    assert found[-1].epochs == len(ended) == min(30, scores.index(max(scores)) + 1 + 2)
    assert settings == {} or len(ended) < 30


@pytest.mark.train
def test_a_strong_pull_keeps_weights_near_their_start(tmp_path):
    def moved(**settings):
        config = tiny_config(optimizer="sgd", learning_rate=1e-2, epochs=3, **settings)
        folder = tmp_path / str(len(settings))
        fit_all(config, folder)
        start = build_network(TINY_BACKBONE, config.initial_weights, 3, 0, 32).model.state_dict()
        tensors, _ = load_tensors(folder, "last")
        kept = [name for name in tensors if name.startswith("layer4") and "conv" in name]
        assert kept
        return sum((tensors[name] - start[name]).norm().item() for name in kept)

    assert moved(l2_sp=50) < 0.3 * moved()


@pytest.mark.train
@pytest.mark.parametrize("blend", [{"mixup": 0.3, "cutmix": 1.0, "class_weights": "balanced"}])
def test_blended_images_are_learned_from(tmp_path, blend):
    found = fit_all(tiny_config(backbone="efficientnet_lite0", epochs=9, **blend), tmp_path)
    (started,) = only(events.RunStarted, found)
    assert started.cache.where == "off"
    assert "mixup" in started.cache.reason
    assert found[-1].val_accuracy >= 0.8


def step_on(rule, forward=None, images=8):
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    inputs, labels = torch.randn(images, 6), torch.arange(images) % 3
    done = train_step(forward(model) if forward else model, inputs, labels, optimizer, CPU, 0, rule)
    return model, done


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_parts_of_a_batch_add_up_to_the_whole(micro):
    weights = torch.tensor([1.0, 2.0, 0.5])
    whole_model, before = step_on(StepRule(0.1, weights))
    parts, after = step_on(StepRule(0.1, weights, micro_batch=micro))
    torch.testing.assert_close(parts.weight, whole_model.weight)
    torch.testing.assert_close(after.loss, before.loss)
    torch.testing.assert_close(after.logits, before.logits)


def test_a_gradient_that_is_no_number_changes_nothing():
    class Broken(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, inputs):
            return self.inner(inputs) * float("nan")

    torch.manual_seed(0)
    before = nn.Linear(6, 3).weight.detach().clone()
    model, done = step_on(StepRule(), Broken)
    assert done.skipped.item() == 1
    assert torch.equal(model.weight, before)


OPTIMIZERS = [partial(torch.optim.SGD, momentum=0.9), torch.optim.Adam, torch.optim.AdamW]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_gradients_lie_exactly_as_their_parameters_when_a_fused_optimizer_sees_them(
    kind, monkeypatch
):
    model = Device("cpu", "", "fp32").move_module(
        build_network("timm/test_nfnet", "none", 3, 0, 32).model
    )
    images = torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last)
    optimizer = kind(model.parameters(), lr=0.1, fused=True)
    cross_entropy(model.train()(images), torch.tensor([0, 1])).backward()
    trained = [one for one in model.parameters() if one.grad is not None]
    before = [one.grad.clone(memory_format=torch.contiguous_format) for one in trained]
    assert sum(one.grad.stride() != one.stride() for one in trained) > 5
    seen = []
    monkeypatch.setattr(optimizer, "step", lambda: seen.extend(one.grad for one in trained))
    take_step(optimizer, torch.tensor(0.0))
    assert all(
        gradient.stride() == one.stride() and torch.equal(gradient, wanted)
        for gradient, one, wanted in zip(seen, trained, before, strict=True)
    )
    monkeypatch.undo()
    take_step(optimizer, torch.tensor(0.0))
    kept = [(one, value) for one in trained for value in optimizer.state[one].values()]
    assert all(value.stride() == one.stride() for one, value in kept if value.shape == one.shape)


def test_a_gradient_in_another_layout_is_copied_into_that_of_its_parameter():
    parameter = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    parameter.grad = torch.randn(4, 3, 2, 2)
    wanted = parameter.detach() - 0.1 * parameter.grad
    take_step(torch.optim.SGD([parameter], lr=0.1, fused=True), torch.tensor(0.0))
    assert parameter.grad.stride() == parameter.stride()
    torch.testing.assert_close(parameter.detach(), wanted)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_skipped_step_is_as_if_it_had_not_been(kind):
    def trained(gradients):
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(5))
        optimizer = kind([parameter], lr=0.1, fused=True)
        for gradient in gradients:
            parameter.grad = torch.full((5,), gradient)
            take_step(optimizer, torch.tensor(float(not math.isfinite(gradient))))
        return parameter, optimizer.state[parameter]

    parameter, state = trained([math.inf, 1.0, math.nan, 2.0])
    wanted, expected = trained([1.0, 2.0])
    assert torch.equal(parameter, wanted)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)


def test_long_gradients_are_shortened():
    free, done = step_on(StepRule())
    short, clipped = step_on(StepRule(clip_norm=0.01))
    assert done.gradient_norm == clipped.gradient_norm
    torch.manual_seed(0)
    start = nn.Linear(6, 3)
    moved = (
        torch.cat([(short.weight - start.weight).flatten(), short.bias - start.bias]).norm().item()
    )
    assert moved == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert not torch.equal(free.weight, short.weight)


def test_one_cycle_is_torchs():
    config = make_config({"data": "x", "schedule": "one_cycle", "epochs": 4, "learning_rate": 1.0})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=40, cycle_momentum=False
    )
    for step in range(40):
        assert learning_rate_factor(config, step, 10) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-9
        ), step
        optimizer.step()
        theirs.step()


def test_steps_go_to_a_tenth_at_half_and_at_three_quarters():
    config = make_config({"data": "x", "schedule": "step", "epochs": 4, "warmup_epochs": 0})
    factors = [learning_rate_factor(config, step, 2) for step in range(8)]
    assert factors == [1] * 4 + [0.1] * 2 + [0.01] * 2


def test_cosine_warms_up_and_comes_down():
    config = make_config({"data": "x", "schedule": "cosine", "epochs": 10, "warmup_epochs": 1})
    factors = [learning_rate_factor(config, step, 20) for step in range(200)]
    assert factors[0] < 0.1
    assert factors[:20] == sorted(factors[:20])
    assert factors[20] == 1.0
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert factors[-1] < 0.001


def test_an_average_lags_behind_and_is_put_back():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightEMA(model.state_dict(), 0.5)
    for _ in range(20):
        with torch.no_grad():
            model.weight += 1
        average.update()
    assert average.tensors["weight"].item() == pytest.approx(19, abs=0.1)
    with average.swap_in():
        assert model.weight.item() == pytest.approx(19, abs=0.1)
    assert model.weight.item() == 20
    assert StepRule() == compute.PLAIN


def test_blending_in_micro_batches_is_blending_the_whole_batch():
    torch.manual_seed(0)
    inputs, labels = torch.randn(8, 5), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])

    def mix(images, targets):
        order = torch.randperm(len(images))
        soft = nn.functional.one_hot(targets, 3).float()
        return 0.7 * images + 0.3 * images[order], 0.7 * soft + 0.3 * soft[order]

    layers = []
    for micro in (None, 3):
        torch.manual_seed(1)
        layer = nn.Linear(5, 3)
        rule = StepRule(class_weights=torch.tensor([1.0, 2.0, 0.5]), micro_batch=micro, mix=mix)
        optimizer = torch.optim.SGD(layer.parameters(), 0.1, fused=True)
        train_step(layer, inputs, labels, optimizer, CPU, 7, rule)
        layers.append(layer.weight)
    assert torch.allclose(*layers, atol=1e-6)
