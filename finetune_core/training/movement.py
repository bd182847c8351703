"""How strongly each stage is pulled, and how far a step moves it: measured in a few steps of every epoch."""

import math

import torch
from torch import nn

from finetune_core.training.events import StageMeasure
from finetune_core.training.out_of_memory import is_out_of_memory

_AN_EPOCH = 5  # measurements: each copies what trains


def is_measured(step: int, steps_per_epoch: int) -> bool:
    """Whether a step, counted from 1, is one of the few; the last of an epoch is."""
    return (steps_per_epoch - step) % -(-steps_per_epoch // _AN_EPOCH) == 0


def copied(optimizer: torch.optim.Optimizer) -> list[list[torch.Tensor]] | None:
    """What trains as it is before a step, group by group; None where memory has no room for it."""
    try:
        return [[parameter.detach().clone() for parameter in group["params"]] for group in optimizer.param_groups]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None


def measured(optimizer: torch.optim.Optimizer, before: list[list[torch.Tensor]]) -> dict[str, StageMeasure]:
    """By stage: its ``learning_rate``, its ``gradient_norm`` (after clipping), and its ``update``: the length of the step relative
    to that of the weights. Stages that have not thawed yet are left out. Uses up ``before``."""
    squares: dict[str, list[float]] = {}
    rates: dict[str, float] = {}
    for group, old in zip(optimizer.param_groups, before, strict=True):
        moving = [(now, then) for now, then in zip(group["params"], old, strict=True) if now.grad is not None]
        if not moving:
            continue
        sums = squares.setdefault(group["stage"], [0.0, 0.0, 0.0])
        sums[0] += _square([now.grad for now, _ in moving])
        sums[2] += _square([then for _, then in moving])
        sums[1] += _square([then.sub_(now.detach()) for now, then in moving])  # in place: there may be no room for another copy
        rates[group["stage"]] = group["lr"]
    return {
        stage: {
            "learning_rate": rates[stage],
            "gradient_norm": math.sqrt(gradient),
            "update": math.sqrt(step / weights) if weights else 0.0,
        }
        for stage, (gradient, step, weights) in squares.items()
    }


def _square(tensors: list[torch.Tensor]) -> float:
    """The square of the length of all of them together."""
    return nn.utils.get_total_norm(tensors).item() ** 2
