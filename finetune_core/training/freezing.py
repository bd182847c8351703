"""Freezing: a model put into training as its strategy has it; the one place that sets ``requires_grad`` and ``train()``."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from finetune_core.models.stages import Stage
from finetune_core.training.stage_plan import BatchNormMode, Strategy, trained_parameters


def apply(strategy: Strategy, stages: Sequence[Stage], model: nn.Module, epoch: int) -> None:
    """Put the model into training as the strategy has it in this epoch: gradients where a stage trains, and ``eval()``
    wherever it is frozen, so that neither BatchNorm statistics nor dropout move."""
    model.train()
    parameters = dict(model.named_parameters())
    for stage, plan in zip(stages, strategy, strict=True):
        trains = plan.trains_in(epoch)
        batchnorm: BatchNormMode = plan.batchnorm if trains or plan.frozen else "frozen"
        chosen = set(trained_parameters(plan, stage)) if trains else set()
        for name in stage.parameters:
            parameters[name].requires_grad_(name in chosen)
        for path in stage.modules:
            module = model.get_submodule(path).train(trains)
            for norm in (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
                norm.train(batchnorm != "frozen")
                for parameter in norm.parameters() if plan.part == "all" else ():
                    parameter.requires_grad_(batchnorm == "train")


def keep_depthwise_exact(strategy: Strategy, stages: Sequence[Stage], model: nn.Module) -> None:
    """Run the depthwise convolutions of the stages that train in fp32, also where the rest runs in bf16: in bf16 their backward
    pass on a processor takes longer than all the others together (``benchmarks/depthwise.py``)."""
    for stage, plan in zip(stages, strategy, strict=True):
        for path in () if plan.frozen else stage.modules:
            for module in model.get_submodule(path).modules():
                if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
                    vars(module)["forward"] = _without_autocast(module.forward)  # of this one, not of its class


def _without_autocast(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def exact(inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return forward(inputs.float())

    return exact
