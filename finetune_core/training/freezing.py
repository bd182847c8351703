"""Freezing: a model put into training as its strategy has it; the one place that sets ``requires_grad`` and ``train()``."""

from collections.abc import Sequence

from torch import nn

from finetune_core.models.stages import Stage
from finetune_core.training.stage_plan import (
    BatchNormMode,
    Strategy,
    factored_matrices,
    trained_parameters,
)


def trains_batchnorm(strategy: Strategy, stages: Sequence[Stage], model: nn.Module) -> bool:
    """Whether a BatchNorm layer computes with the statistics of its batch, at the end of the run at the latest."""
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        for stage, plan in zip(stages, strategy, strict=True)
        if plan.batchnorm != "frozen"
        for path in stage.modules
        for module in model.get_submodule(path).modules()
    )


def apply(strategy: Strategy, stages: Sequence[Stage], model: nn.Module, epoch: int) -> None:
    """Put the model into training as the strategy has it in this epoch: gradients where a stage trains, and ``eval()``
    wherever it is frozen, so that neither BatchNorm statistics nor dropout move."""
    model.train()
    parameters = dict(model.named_parameters())
    for stage, plan in zip(stages, strategy, strict=True):
        trains = plan.trains_in(epoch)
        batchnorm: BatchNormMode = plan.batchnorm if trains or plan.frozen else "frozen"
        chosen = (
            {*trained_parameters(plan, stage), *factored_matrices(plan, stage)} if trains else set()
        )
        for name in stage.parameters:
            parameters[name].requires_grad_(name in chosen)
        for path in stage.modules:
            module = model.get_submodule(path).train(trains)
            for norm in (
                m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
            ):
                norm.train(batchnorm != "frozen")
                for parameter in norm.parameters() if plan.part == "all" else ():
                    parameter.requires_grad_(batchnorm == "train")
