"""How strongly each stage is pulled, and how far a step moves it: measured in a few steps of every epoch."""

import math

import torch
from torch import nn

_AN_EPOCH = 5  # measurements: each copies what trains

Stages = dict[str, dict[str, float]]


def is_measured(step: int, steps_per_epoch: int) -> bool:
    """Whether a step, counted from 1, is one of the few; the last of an epoch is."""
    return (steps_per_epoch - step) % -(-steps_per_epoch // _AN_EPOCH) == 0


def copied(optimizer: torch.optim.Optimizer) -> list[list[torch.Tensor]]:
    """What trains as it is before a step, group by group."""
    return [[parameter.detach().clone() for parameter in group["params"]] for group in optimizer.param_groups]


def measured(optimizer: torch.optim.Optimizer, before: list[list[torch.Tensor]]) -> Stages:
    """By stage: its ``learning_rate``, its ``gradient_norm`` (after clipping), and its ``update``: the length of the step relative
    to that of the weights. Stages that have not thawed yet are left out."""
    squares: dict[str, list[float]] = {}
    rates: dict[str, float] = {}
    for group, old in zip(optimizer.param_groups, before, strict=True):
        moving = [(now, then) for now, then in zip(group["params"], old, strict=True) if now.grad is not None]
        if not moving:
            continue
        gradients = [now.grad for now, _ in moving]
        steps = [now.detach() - then for now, then in moving]
        sums = squares.setdefault(group["stage"], [0.0, 0.0, 0.0])
        for position, tensors in enumerate((gradients, steps, [then for _, then in moving])):
            sums[position] += nn.utils.get_total_norm(tensors).item() ** 2
        rates[group["stage"]] = group["lr"]
    return {
        stage: {
            "learning_rate": rates[stage],
            "gradient_norm": math.sqrt(gradient),
            "update": math.sqrt(step / weights) if weights else 0.0,
        }
        for stage, (gradient, step, weights) in squares.items()
    }
