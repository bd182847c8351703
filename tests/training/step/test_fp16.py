"""Tests of fp16 with a loss scale, on a processor whose autocast computes as a GPU's does."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from finetune_core.errors import TrainingError
from finetune_core.runs.log import describe_event
from finetune_core.training import events
from finetune_core.training.checkpoints.files import load_tensors
from finetune_core.training.devices import device
from finetune_core.training.devices.device import Device
from finetune_core.training.loop import StopRequested, fit
from finetune_core.training.predictions import load_predictions, predictions_precision
from finetune_core.training.prepare import prepare
from finetune_core.training.step import loss_scale
from finetune_core.training.step.compute import StepRule, train_step
from finetune_core.training.step.loss_scale import LossScale
from finetune_core.training.step.pending import ReadStep
from finetune_core.training.step.weight_ema import WeightEMA
from tests.drain import drain
from tests.factories import tiny_config

TOO_LARGE = 2.0**30  # the first few gradients overflow


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setattr(device, "_WITH_FP16", ("cuda", "cpu"))
    usual = {"strategy": "feature_extraction", "learning_rate": 0.05, "compile": "off"}
    return partial(tiny_config, **usual, batch_size=10, precision="fp16")


def of(kind, found):
    return [event for event in found if isinstance(event, kind)]


@pytest.mark.train
def test_it_learns_is_cached_in_fp16_and_is_evaluated_in_fp32(config, tmp_path):
    settings = config(epochs=6)
    found = list(fit(settings, tmp_path))
    assert isinstance(found[-1], events.RunFinished)
    assert found[-1].val_accuracy >= 0.8
    assert of(events.RunStarted, found)[0].precision == "fp16"
    assert predictions_precision(tmp_path) == found[-1].evaluation_precision == "fp32"
    assert {step.loss_scale for step in of(events.StepEnded, found)} == {2.0**16}
    source = drain(prepare(settings))[1].source
    assert source.plain.batch(np.array([0])).dtype == torch.float16


@pytest.mark.train
def test_gradients_that_overflow_are_skipped_and_halve_the_scale(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scale, "_FIRST", TOO_LARGE)
    found = list(fit(config(epochs=8, ema=0.5), tmp_path))
    steps, epochs = of(events.StepEnded, found), of(events.EpochEnded, found)
    skipped = [step.skipped for step in steps]
    assert 3 < sum(skipped) < len(steps) - 3
    assert (skipped[0], skipped[-1]) == (True, False)
    assert [step.loss_scale for step in steps] == [
        TOO_LARGE / 2 ** sum(skipped[: number + 1]) for number in range(len(steps))
    ]
    assert all((step.gradient_norm > 0) != step.skipped for step in steps)
    assert sum(epoch.skipped_steps for epoch in epochs) == sum(skipped)
    assert epochs[0].skipped_steps == 3
    assert epochs[0].stages is None, "nothing was measured of a step that was skipped"
    assert "3 steps skipped, whose gradients overflowed in fp16." in describe_event(
        epochs[0].to_json()
    )
    assert "skipped" not in describe_event(epochs[-1].to_json())
    assert found[-1].val_accuracy >= 0.8


@pytest.mark.train
def test_stopped_among_steps_that_overflow_and_resumed_it_is_the_same_to_the_last_bit(
    config, tmp_path, monkeypatch, marks
):
    monkeypatch.setattr(loss_scale, "_FIRST", TOO_LARGE)
    settings = config(epochs=6, ema=0.5, optimizer="sgd")
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = of(events.EpochEnded, fit(settings, tmp_path / "whole"))
    stream = fit(settings, tmp_path / "cut")
    for event in stream:
        if isinstance(event, events.StepEnded) and (event.epoch, event.step) == (1, 2):
            break
    stream.throw(StopRequested())
    tensors, _ = load_tensors(tmp_path / "cut", "last")
    assert tensors["loss_scale/factor"] == TOO_LARGE / 4
    again = of(events.EpochEnded, fit(settings, tmp_path / "cut", resume=True))
    assert [epoch.skipped_steps for epoch in again] == [epoch.skipped_steps for epoch in whole]
    assert marks(tmp_path / "cut") == marks(tmp_path / "whole")
    assert load_predictions(tmp_path / "cut").equals(load_predictions(tmp_path / "whole"))


def test_a_scale_that_falls_below_one_is_divergence(config, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scale, "_FIRST", TOO_LARGE)
    monkeypatch.setattr(loss_scale, "_BACKOFF", 2.0**-31)
    with pytest.raises(
        TrainingError, match=r"not finite at step 1 of epoch 1.*ten times lower, or precision fp32"
    ):
        list(fit(config(), tmp_path))


@pytest.mark.parametrize(
    ("loss", "skipped", "scale", "diverged"),
    [
        (1.0, True, 2.0**15, False),
        (1.0, True, 1.0, False),
        (1.0, True, 0.5, True),
        (float("nan"), True, 2.0**15, True),
        (float("inf"), False, 2.0**16, True),
        (1.0, True, 0.0, True),  # not scaled
        (1.0, False, 0.0, False),
    ],
)
def test_an_overflow_is_divergence_only_where_the_scale_is_not_to_blame(
    loss, skipped, scale, diverged
):
    assert ReadStep(loss, 0.0, skipped, scale, np.zeros(1), None).has_diverged == diverged


@pytest.mark.parametrize("micro", [None, 3])
def test_a_step_is_that_of_fp32_whatever_the_scale(micro):
    """Clipping and L2-SP see gradients as they are, without the scale."""
    weights, norms = [], []
    for precision, factor in (("fp32", None), ("fp16", 2.0), ("fp16", 2.0**12)):
        torch.manual_seed(0)
        model = nn.Linear(6, 3)
        start = torch.ones_like(model.weight)
        rule = StepRule(clip_norm=0.5, micro_batch=micro, l2_sp=(0.1, ((model.weight, start),)))
        scale = (
            LossScale(torch.tensor(factor), torch.zeros((), dtype=torch.int32)) if factor else None
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
        inputs, labels = torch.randn(8, 6), torch.arange(8) % 3
        done = train_step(
            model, inputs, labels, optimizer, Device("cpu", "", precision), 0, rule, scale
        )
        weights.append(model.weight.detach())
        norms.append(done.gradient_norm.item())
    for weight, norm in zip(weights[1:], norms[1:], strict=True):
        torch.testing.assert_close(weight, weights[0], rtol=2e-3, atol=2e-3)
        assert norm == pytest.approx(norms[0], rel=5e-3)
    assert not torch.equal(weights[0], weights[1])


def test_an_average_takes_in_steps_that_are_made_and_no_others():
    model = nn.Linear(4, 2)
    gated, plain = WeightEMA(model.state_dict(), 0.5), WeightEMA(model.state_dict(), 0.5)
    with torch.no_grad():
        model.weight += 1
    before = gated.tensors["weight"].clone()
    gated.update(torch.tensor(1.0))
    assert torch.equal(gated.tensors["weight"], before)
    gated.steps = 0
    gated.update(torch.tensor(0.0))
    plain.update()
    torch.testing.assert_close(gated.tensors["weight"], plain.tensors["weight"])
    assert not torch.equal(plain.tensors["weight"], before)
