"""Parameter groups of the optimizer: learning rate and weight decay per stage."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from finetune_core.models.stages import Stage
from finetune_core.training.strategies.lora import NONE, LowRank
from finetune_core.training.strategies.stage_plan import (
    Strategy,
    factored_matrices,
    list_trained_parameters,
)


def parameter_groups(
    strategy: Strategy,
    stages: Sequence[Stage],
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    low_rank: LowRank = NONE,
) -> list[dict[str, Any]]:
    """Return groups for a torch optimizer, named by stage.

    Norms and biases are not decayed (He et al. 2019, Bag of tricks).
    """
    parameters = dict(model.named_parameters())
    groups = []
    for stage, plan in zip(stages, strategy, strict=True):
        training = [parameters[name] for name in list_trained_parameters(plan, stage)]
        training += low_rank.parameters(factored_matrices(plan, stage))
        for decay in (weight_decay, 0.0) if weight_decay else (0.0,):
            chosen = [one for one in training if not weight_decay or (one.ndim > 1) == bool(decay)]
            if chosen:
                rate = learning_rate * plan.rate
                groups.append(
                    {
                        "params": chosen,
                        "lr": rate,
                        "base_lr": rate,
                        "weight_decay": decay,
                        "stage": stage.name,
                    }
                )
    return groups
