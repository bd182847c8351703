"""Optimizer of a run, for the parameters that its strategy trains."""

from collections.abc import Sequence

import torch
from torch import nn

from finetune_core.config import RunConfig
from finetune_core.models.stages import Stage
from finetune_core.training.strategies.lora import NONE, LowRank
from finetune_core.training.strategies.parameter_groups import parameter_groups
from finetune_core.training.strategies.stage_plan import Strategy

_MOMENTUM = 0.9


def make_optimizer(
    config: RunConfig,
    strategy: Strategy,
    stages: Sequence[Stage],
    model: nn.Module,
    low_rank: LowRank = NONE,
) -> torch.optim.Optimizer:
    """Return the config's optimizer with one group per stage, each with its ``base_lr``."""
    groups = parameter_groups(
        strategy, stages, model, config.learning_rate, config.weight_decay, low_rank
    )
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=_MOMENTUM, fused=True)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, fused=True)


def take_step(optimizer: torch.optim.Optimizer, skipped: torch.Tensor) -> None:
    """Take a fused optimizer's step, unless it is to be skipped.

    Args:
        optimizer: A fused one.
        skipped: float32 ``[]``, on the device. Where it is 1, weights and state stay as they are.
    """
    if isinstance(optimizer, torch.optim.SGD):
        _init_momentum(optimizer)
    _lay_out_gradients(optimizer)
    # Fused kernels read it on the device, so nothing waits for its value.
    vars(optimizer)["found_inf"] = skipped
    optimizer.step()


def _lay_out_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Give each gradient exactly the strides of its parameter.

    CUDA's fused kernels compare strides, also those of dimensions of size 1, which mean nothing.
    There the gradients of weight-standardised convolutions differ: 13 of 93 in timm's test_nfnet.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None or gradient.stride() == parameter.stride():
                continue
            strides = zip(parameter.shape, gradient.stride(), parameter.stride(), strict=True)
            if all(given == wanted for size, given, wanted in strides if size > 1):
                parameter.grad = gradient.as_strided(parameter.shape, parameter.stride())
            else:
                parameter.grad = torch.empty_like(parameter).copy_(gradient)


def _init_momentum(optimizer: torch.optim.SGD) -> None:
    """Initialise momentum with zeros.

    torch leaves the buffers of a first step that is skipped uninitialised.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            if parameter.grad is not None and "momentum_buffer" not in optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
