"""Freezing: the only place that sets ``requires_grad`` and ``train()``."""

from collections.abc import Sequence

from torch import nn

from finetune_core.models.stages import Stage
from finetune_core.training.strategies.stage_plan import (
    BatchNormMode,
    Strategy,
    factored_matrices,
    list_trained_parameters,
)


def has_trained_batchnorm(strategy: Strategy, stages: Sequence[Stage], model: nn.Module) -> bool:
    """Return whether a BatchNorm layer uses its batch's statistics, at the latest at the end."""
    return any(
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        for stage, plan in zip(stages, strategy, strict=True)
        if plan.batchnorm != "frozen"
        for path in stage.modules
        for module in model.get_submodule(path).modules()
    )


def apply_strategy(
    strategy: Strategy, stages: Sequence[Stage], model: nn.Module, epoch: int
) -> None:
    """Put the model into training mode as the strategy plans this epoch.

    A stage that trains has gradients. A frozen stage is in eval mode, so that neither BatchNorm
    statistics nor dropout change anything.
    """
    model.train()
    parameters = dict(model.named_parameters())
    for stage, plan in zip(stages, strategy, strict=True):
        trains = plan.trains_in(epoch)
        batchnorm: BatchNormMode = plan.batchnorm if trains or plan.frozen else "frozen"
        trained = (
            {*list_trained_parameters(plan, stage), *factored_matrices(plan, stage)}
            if trains
            else set()
        )
        for name in stage.parameters:
            parameters[name].requires_grad_(name in trained)
        for path in stage.modules:
            module = model.get_submodule(path).train(trains)
            for norm in (
                m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
            ):
                norm.train(batchnorm != "frozen")
                for parameter in norm.parameters() if plan.part == "all" else ():
                    parameter.requires_grad_(batchnorm == "train")
