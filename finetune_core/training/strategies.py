"""A strategy says for every stage whether it trains, how fast, and what its BatchNorm does. It is data; one function
applies it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from finetune_core.config import RunConfig
from finetune_core.errors import ConfigError
from finetune_core.models.stages import Stage

BatchNormMode = Literal["frozen", "statistics", "train"]


@dataclass(frozen=True)
class StagePlan:
    """What happens to one stage.

    Attributes:
        frozen: its weights never change.
        rate: how many times the run's learning rate it gets.
        thaw_epoch: the epoch, counted from 1, from which it trains.
        batchnorm: ``frozen`` keeps running statistics and affine weights; ``statistics`` lets the statistics follow the
            data; ``train`` trains the affine weights, too.
    """

    stage: str
    frozen: bool
    rate: float
    thaw_epoch: int
    batchnorm: BatchNormMode

    def trains_in(self, epoch: int) -> bool:
        return not self.frozen and epoch >= self.thaw_epoch


Strategy = tuple[StagePlan, ...]


@dataclass(frozen=True)
class NamedStrategy:
    """A strategy that a person can choose.

    Attributes:
        rates: (config, stage names) -> how many times the learning rate each stage gets; 0 is frozen.
        help: when it pays, in one or two sentences.
        source: where it comes from.
    """

    title: str
    help: str
    source: str
    rates: Callable[[RunConfig, Sequence[str]], Sequence[float]]


def _last(count: int) -> Callable[[RunConfig, Sequence[str]], Sequence[float]]:
    def rates(_config: RunConfig, names: Sequence[str]) -> Sequence[float]:
        first = max(0, len(names) - count)
        return [float(index >= first) for index in range(len(names))]

    return rates


def _custom(config: RunConfig, names: Sequence[str]) -> Sequence[float]:
    known = f"the stages of {config.backbone} are {', '.join(names)}"
    if config.cut is not None:
        if config.cut not in names:
            raise ConfigError({"cut": f"there is no stage {config.cut!r}; {known}"})
        return [float(index >= names.index(config.cut)) for index in range(len(names))]
    given = config.stage_rates or {}
    if unknown := [name for name in given if name not in names]:
        raise ConfigError({"stage_rates": f"there is no stage {', '.join(map(repr, unknown))}; {known}"})
    if not given.get("head"):
        raise ConfigError({"stage_rates": "the head is new and has to train: give it a rate above 0"})
    return [given.get(name, 0.0) for name in names]


STRATEGIES: dict[str, NamedStrategy] = {
    "feature_extraction": NamedStrategy(
        "Feature extraction",
        "Only the new head trains. The fastest, and hard to overfit: right for few images, or images like ImageNet's.",
        "Donahue et al. 2014, DeCAF",
        _last(1),
    ),
    "last_block": NamedStrategy(
        "Last block",
        "The last stage and the head train. The usual first choice when feature extraction is not good enough.",
        "Yosinski et al. 2014, How transferable are features in deep neural networks?",
        _last(2),
    ),
    "last_two_blocks": NamedStrategy(
        "Last two blocks",
        "The last two stages and the head train. For images that look unlike ImageNet's, with some hundreds for each class.",
        "Yosinski et al. 2014",
        _last(3),
    ),
    "full": NamedStrategy(
        "Everything",
        "All stages train. The slowest; pays with many images, or images very unlike ImageNet's.",
        "Kornblith et al. 2019, Do better ImageNet models transfer better?",
        lambda _config, names: [1.0] * len(names),
    ),
    "custom": NamedStrategy(
        "Custom",
        "You decide: a first stage that trains, or a rate for each stage.",
        "Lee et al. 2023, Surgical fine-tuning",
        _custom,
    ),
}


def plan(config: RunConfig, stages: Sequence[Stage]) -> Strategy:
    """The config's strategy on these stages.

    Raises:
        ConfigError: when a custom strategy names a stage that is not there, or trains nothing.
    """
    rates = STRATEGIES[config.strategy].rates(config, [stage.name for stage in stages])
    return tuple(
        StagePlan(stage.name, rate == 0, rate, 1, "frozen" if rate == 0 else "train")
        for stage, rate in zip(stages, rates, strict=True)
    )


def cut_index(strategy: Strategy) -> int:
    """Index of the first stage that changes in any way; the stages before it are the trunk."""
    return next(index for index, plan in enumerate(strategy) if not plan.frozen or plan.batchnorm != "frozen")


def trainable_parameters(strategy: Strategy, stages: Sequence[Stage]) -> int:
    """Numbers that train, at the end of the run at the latest."""
    return sum(stage.parameter_count for stage, plan in zip(stages, strategy, strict=True) if not plan.frozen)


def describe(strategy: Strategy, stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """One plain row a stage, input to head: ``name, parameters, trains, rate, thaw_epoch``."""
    return [
        {
            "name": stage.name,
            "parameters": stage.parameter_count,
            "trains": not plan.frozen,
            "rate": plan.rate,
            "thaw_epoch": plan.thaw_epoch,
        }
        for stage, plan in zip(stages, strategy, strict=True)
    ]


def apply(strategy: Strategy, stages: Sequence[Stage], model: nn.Module, epoch: int) -> None:
    """Put the model into training as the strategy has it in this epoch: gradients where a stage trains, and ``eval()``
    wherever it is frozen, so that neither BatchNorm statistics nor dropout move."""
    model.train()
    parameters = dict(model.named_parameters())
    for stage, plan in zip(stages, strategy, strict=True):
        trains = plan.trains_in(epoch)
        batchnorm: BatchNormMode = plan.batchnorm if trains or plan.frozen else "frozen"
        for name in stage.parameters:
            parameters[name].requires_grad_(trains)
        for path in stage.modules:
            module = model.get_submodule(path).train(trains)
            for norm in (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
                norm.train(batchnorm != "frozen")
                for parameter in norm.parameters():
                    parameter.requires_grad_(batchnorm == "train")


def keep_depthwise_exact(strategy: Strategy, stages: Sequence[Stage], model: nn.Module) -> None:
    """Run the depthwise convolutions of the stages that train in fp32, whatever the rest runs in: in bf16 their backward
    pass on a processor takes longer than all the others together (``benchmarks/depthwise.py``)."""
    for stage, plan in zip(stages, strategy, strict=True):
        for path in () if plan.frozen else stage.modules:
            for module in model.get_submodule(path).modules():
                if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
                    module.forward = _without_autocast(module.forward)


def _without_autocast(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def exact(inputs: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return forward(inputs.float())

    return exact


def parameter_groups(
    strategy: Strategy, stages: Sequence[Stage], model: nn.Module, learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, named by stage. Norms and biases are not decayed (He et al. 2019, Bag of tricks)."""
    parameters = dict(model.named_parameters())
    groups = []
    for stage, plan in zip(stages, strategy, strict=True):
        if plan.frozen:
            continue
        for decay in (weight_decay, 0.0) if weight_decay else (0.0,):
            chosen = [parameters[n] for n in stage.parameters if not weight_decay or (parameters[n].ndim > 1) == bool(decay)]
            if chosen:
                rate = learning_rate * plan.rate
                groups.append({"params": chosen, "lr": rate, "base_lr": rate, "weight_decay": decay, "stage": stage.name})
    return groups
