"""Tests that the measurements of each stage are what the step did to it."""

import pytest
import torch
from torch import nn

from finetune_core.training import events
from finetune_core.training.step.movement import copy_parameters, is_measured, measure_step
from tests.factories import tiny_config
from tests.training.fits import fit_all, only


def test_five_steps_an_epoch_are_measured_the_last_among_them():
    for steps in (1, 3, 5, 7, 100, 101):
        chosen = [step for step in range(1, steps + 1) if is_measured(step, steps)]
        assert chosen[-1] == steps
        assert min(steps, 4) <= len(chosen) <= 5 or steps < 5


def test_numbers_are_those_of_a_plain_step():
    layer = nn.Linear(3, 2)
    group = {"params": [layer.weight, layer.bias], "lr": 0.1, "stage": "head"}
    idle = {"params": [nn.Parameter(torch.ones(2))], "lr": 0.1, "stage": "frozen for now"}
    optimizer = torch.optim.SGD([group, idle])
    layer(torch.ones(4, 3)).square().sum().backward()
    before = copy_parameters(optimizer)
    weights = torch.cat([tensor.flatten() for tensor in before[0]]).norm().item()
    optimizer.step()
    found = measure_step(optimizer, before).read()
    gradient = torch.cat([layer.weight.grad.flatten(), layer.bias.grad]).norm().item()
    assert set(found) == {"head"}
    assert found["head"] == pytest.approx(
        {"learning_rate": 0.1, "gradient_norm": gradient, "update": 0.1 * gradient / weights},
        rel=1e-4,
    )


@pytest.mark.train
def test_a_run_tells_of_every_stage_that_trains_and_of_no_other(tmp_path):
    config = tiny_config(epochs=6, batch_size=42, strategy="gradual_unfreezing")
    ended = only(events.EpochEnded, fit_all(config, tmp_path))
    assert [len(event.stages) for event in ended] == [1, 2, 3, 4, 5, 6]
    assert list(ended[0].stages) == ["head"]
    assert all(row["gradient_norm"] > 0 and row["update"] > 0 for row in ended[-1].stages.values())
