"""The optimizer of a run, and how its learning rate goes."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from finetune_core.config import RunConfig
from finetune_core.models.stages import Stage
from finetune_core.training.strategies import Strategy, parameter_groups

_MOMENTUM = 0.9


def make_optimizer(config: RunConfig, strategy: Strategy, stages: Sequence[Stage], model: nn.Module) -> torch.optim.Optimizer:
    """The config's optimizer over what the strategy trains, one group a stage, each with its ``base_lr``."""
    groups = parameter_groups(strategy, stages, model, config.learning_rate, config.weight_decay)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=_MOMENTUM, fused=True)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Every group's rate becomes ``factor`` times its ``base_lr``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def learning_rate_factor(config: RunConfig, step: int, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied by at a step counted from 0 over the whole run.

    Cosine: a linear rise over the warm-up, then half a cosine towards 0 (Loshchilov & Hutter 2017, without restarts).
    """
    if config.schedule == "constant":
        return 1.0
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    total = config.epochs * steps_per_epoch
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
