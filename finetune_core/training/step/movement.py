"""Gradient norms and step lengths of each stage, measured in a few steps of every epoch."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from finetune_core.errors import is_out_of_memory
from finetune_core.training.events import StageMeasure

# Measurements. Each copies what trains.
_AN_EPOCH = 5


def is_measured(step: int, steps_per_epoch: int) -> bool:
    """Return whether a step, counted from 1, is measured. The last of an epoch is."""
    return (steps_per_epoch - step) % -(-steps_per_epoch // _AN_EPOCH) == 0


def copy_parameters(optimizer: torch.optim.Optimizer) -> list[list[torch.Tensor]] | None:
    """Return a copy of what trains, group by group, or None where memory has no room for it."""
    try:
        return [
            [parameter.detach().clone() for parameter in group["params"]]
            for group in optimizer.param_groups
        ]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return None


@dataclass(frozen=True)
class Measurement:
    """Measurements of a step, still on the device.

    Attributes:
        groups: Stage and learning rate of each of the optimizer's groups that moved.
        lengths: ``[groups, 3]``: length of its gradient, of its step, and of its weights before.
    """

    groups: list[tuple[str, float]]
    lengths: torch.Tensor

    def read(self) -> dict[str, StageMeasure]:
        """Return the measurements by stage.

        ``gradient_norm`` is after clipping. ``update`` is the length of the step relative to that
        of the weights. Stages that have not thawed yet are left out.
        """
        sums_of_squares: dict[str, list[float]] = {}
        for (stage, _), lengths in zip(self.groups, self.lengths.tolist(), strict=True):
            sums = sums_of_squares.setdefault(stage, [0.0, 0.0, 0.0])
            sums_of_squares[stage] = [
                before + length**2 for before, length in zip(sums, lengths, strict=True)
            ]
        rates = dict(self.groups)
        return {
            stage: {
                "learning_rate": rates[stage],
                "gradient_norm": math.sqrt(gradient),
                "update": math.sqrt(step / weights) if weights else 0.0,
            }
            for stage, (gradient, step, weights) in sums_of_squares.items()
        }


def measure_step(optimizer: torch.optim.Optimizer, before: list[list[torch.Tensor]]) -> Measurement:
    """Compare what trains with what it was before the step. Overwrites ``before``."""
    groups, lengths = [], []
    for group, old_parameters in zip(optimizer.param_groups, before, strict=True):
        moved = [
            (now, then)
            for now, then in zip(group["params"], old_parameters, strict=True)
            if now.grad is not None
        ]
        if not moved:
            continue
        gradient = nn.utils.get_total_norm([now.grad for now, _ in moved])
        weights = nn.utils.get_total_norm([then for _, then in moved])
        # In place, because there may be no memory for another copy.
        step = nn.utils.get_total_norm([then.sub_(now.detach()) for now, then in moved])
        groups.append((group["stage"], group["lr"]))
        lengths.append(torch.stack([gradient, step, weights]))
    return Measurement(groups, torch.stack(lengths))
