"""Every way to thaw trains, keeps what it promises to keep, and can be stopped and resumed; so does every setting."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from finetune_core.config import make_config
from finetune_core.models.network import build_network, network_stages
from finetune_core.training import compute, events
from finetune_core.training.checkpoints import load_tensors
from finetune_core.training.compute import StepRule, train_step
from finetune_core.training.device import Device
from finetune_core.training.loop import StopRequested, fit
from finetune_core.training.optimizers import take_step
from finetune_core.training.schedules import learning_rate_factor
from finetune_core.training.stage_plan import frozen_tensors, plan
from finetune_core.training.strategies import STRATEGIES
from finetune_core.training.weight_ema import WeightEMA

CPU = Device("cpu", "a processor", "fp32")


@pytest.fixture
def config(colour_config):
    return partial(colour_config, batch_size=10, epochs=9)


def whole(config, folder):
    folder.mkdir()
    return list(fit(config, folder))


def changed(config, folder):
    """Names of the tensors of ``last`` that differ from the network before training."""
    before = build_network(config.backbone, config.starts_from, 3, config.seed).model.state_dict()
    tensors, _ = load_tensors(folder, "last")
    return {
        name
        for name, tensor in tensors.items()
        if "/" not in name and not torch.equal(tensor, before[name])
    }


def every_strategy():
    """Those that train in ways of their own in every run of the tests, the others among the slow ones."""
    few = ("last_block", "linear_probe_then_full", "bias_only")
    return [
        name if name in few else pytest.param(name, marks=pytest.mark.train)
        for name in STRATEGIES
        if name != "custom"
    ]


@pytest.mark.parametrize("strategy", every_strategy())
def test_every_strategy_learns_the_colours_and_passes_the_audit(config, tmp_path, strategy):
    settings = config(strategy=strategy)
    end = whole(settings, tmp_path / "run")[-1]
    assert isinstance(end, events.RunFinished)
    # random weights learn little in nine epochs
    assert strategy == "from_scratch" or end.val_accuracy >= 0.8
    assert (end.frozen_tensors > 0) == (
        strategy
        not in (
            "full",
            "linear_probe_then_full",
            "gradual_unfreezing",
            "discriminative",
            "from_scratch",
        )
    )
    stages = network_stages(settings.backbone, 3)
    declared = [
        name
        for stage, one in zip(stages, plan(settings, stages), strict=True)
        for name in frozen_tensors(one, stage)
    ]
    assert end.frozen_tensors == len(declared), (
        "the audit has not compared all that the strategy declares frozen"
    )


def test_norms_only_change_norms_and_the_head(config, tmp_path):
    settings = config(strategy="batchnorm_only", epochs=1)
    whole(settings, tmp_path / "run")
    assert all(
        ".bn" in name or "bn" in name.split(".")[-2] or name.startswith("classifier")
        for name in changed(settings, tmp_path / "run")
    )
    assert any("running_mean" in name for name in changed(settings, tmp_path / "run"))


def test_biases_only_change_biases_and_the_head(config, tmp_path):
    settings = config(strategy="bias_only", epochs=1)
    whole(settings, tmp_path / "run")
    found = changed(settings, tmp_path / "run")
    assert all(name.endswith("bias") or name.startswith("classifier") for name in found)
    assert len(found) > 20


def test_before_they_thaw_stages_are_what_they_were(config, tmp_path):
    settings = config(strategy="linear_probe_then_full", epochs=4, thaw_every=2)
    (tmp_path / "run").mkdir()
    stream = fit(settings, tmp_path / "run")
    for event in stream:
        if isinstance(event, events.EpochEnded) and event.epoch == 2:
            break
    assert changed(settings, tmp_path / "run") == {"classifier.weight", "classifier.bias"}
    list(stream)
    assert len(changed(settings, tmp_path / "run")) > 100


EXTRAS = {
    "thawing": {"strategy": "gradual_unfreezing", "epochs": 9},
    "average of weights": {"ema": 0.9},
    "everything else": {
        "l2_sp": 0.1,
        "label_smoothing": 0.1,
        "class_weights": "balanced",
        "clip_norm": 0.5,
        "micro_batch": 4,
        "schedule": "one_cycle",
    },
}


@pytest.mark.parametrize(
    "name",
    [
        "average of weights",
        *(pytest.param(one, marks=pytest.mark.train) for one in list(EXTRAS)[::2]),
    ],
)
def test_stopped_and_resumed_is_the_same_to_the_last_bit(config, tmp_path, marks, name):
    settings = config(**{"epochs": 6} | EXTRAS[name])
    end = whole(settings, tmp_path / "whole")[-1]
    (tmp_path / "cut").mkdir()
    stream = fit(settings, tmp_path / "cut")
    for event in stream:
        if isinstance(event, events.StepEnded) and (event.epoch, event.step) == (6, 2):
            break
    stream.throw(StopRequested())
    again = list(fit(settings, tmp_path / "cut", resume=True))[-1]
    assert (again.best_epoch, again.val_loss, again.test_accuracy) == (
        end.best_epoch,
        end.val_loss,
        end.test_accuracy,
    )
    assert marks(tmp_path / "cut") == marks(tmp_path / "whole")


def test_early_stopping_ends_the_run_after_its_patience(config, tmp_path):
    found = whole(
        config(epochs=200, learning_rate=1e-7, early_stopping="val_accuracy", patience=2),
        tmp_path / "run",
    )
    end = found[-1]
    assert isinstance(end, events.RunFinished)
    assert end.epochs < 200
    assert end.epochs == end.best_epoch + 2


@pytest.mark.train
def test_a_strong_pull_keeps_weights_near_their_start(config, tmp_path):
    far, near = config(epochs=3), config(epochs=3, l2_sp=50, optimizer="sgd", learning_rate=1e-2)
    assert _moved(near, tmp_path / "near") < 0.3 * _moved(
        far.model_copy(update={"optimizer": "sgd", "learning_rate": 1e-2}), tmp_path / "far"
    )


def _moved(config, folder):
    whole(config, folder)
    before = build_network(config.backbone, config.starts_from, 3, config.seed).model.state_dict()
    tensors, _ = load_tensors(folder, "last")
    kept = [name for name in tensors if name.startswith("blocks") and name.endswith("weight")]
    return sum((tensors[name] - before[name]).norm().item() for name in kept)


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
    model = Device("cpu", "", "fp32").hold(build_network("timm/test_nfnet", "none", 3, 0, 32).model)
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
    assert [learning_rate_factor(config, step, 2) for step in range(8)] == [
        1,
        1,
        1,
        1,
        0.1,
        0.1,
        0.01,
        0.01,
    ]


def test_an_average_lags_behind_and_is_put_back():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightEMA(model.state_dict(), 0.5)
    for _ in range(20):
        with torch.no_grad():
            model.weight += 1
        average.update()
    assert average.tensors["weight"].item() == pytest.approx(19, abs=0.1)
    with average.in_place():
        assert model.weight.item() == pytest.approx(19, abs=0.1)
    assert model.weight.item() == 20
    assert StepRule() == compute.PLAIN


@pytest.mark.parametrize(
    "blend",
    [
        *(pytest.param(one, marks=pytest.mark.train) for one in ({"mixup": 0.3}, {"cutmix": 1.0})),
        {"mixup": 0.3, "cutmix": 1.0, "class_weights": "balanced"},
    ],
)
def test_blended_images_are_learned_from(config, tmp_path, blend):
    emitted = whole(config(strategy="last_block", **blend), tmp_path / "run")
    started = next(event for event in emitted if isinstance(event, events.RunStarted))
    assert started.cache.where == "off"
    assert "mixup" in started.cache.reason
    assert emitted[-1].val_accuracy >= 0.8


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
        train_step(
            layer,
            inputs,
            labels,
            torch.optim.SGD(layer.parameters(), 0.1, fused=True),
            CPU,
            7,
            rule,
        )
        layers.append(layer.weight)
    assert torch.allclose(*layers, atol=1e-6)


def test_early_stopping_watches_the_chosen_metric(config, tmp_path):
    settings = config(
        strategy="feature_extraction", early_stopping="val_macro_f1", patience=2, epochs=30
    )
    emitted = [
        event for event in whole(settings, tmp_path / "run") if isinstance(event, events.EpochEnded)
    ]
    scores = [event.val_scores["macro_f1"] for event in emitted]
    best = scores.index(max(scores))
    assert len(emitted) == min(30, best + 1 + 2)
