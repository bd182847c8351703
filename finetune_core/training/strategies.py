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
Part = Literal["all", "norms", "biases"]

_MODES: dict[str, BatchNormMode] = {"auto": "train", "frozen": "frozen", "statistics": "statistics"}


@dataclass(frozen=True)
class StagePlan:
    """What happens to one stage.

    Attributes:
        frozen: its weights never change.
        rate: how many times the run's learning rate it gets.
        thaw_epoch: the epoch, counted from 1, from which it trains.
        batchnorm: ``frozen`` keeps running statistics and affine weights; ``statistics`` lets the statistics follow the
            data; ``train`` trains the affine weights, too.
        part: which of its weights train: all, those of its normalisation layers, or its biases (those of norms among them).
    """

    stage: str
    frozen: bool
    rate: float
    thaw_epoch: int
    batchnorm: BatchNormMode
    part: Part = "all"

    def trains_in(self, epoch: int) -> bool:
        return not self.frozen and epoch >= self.thaw_epoch


Strategy = tuple[StagePlan, ...]


@dataclass(frozen=True)
class Rule:
    """What a strategy says of one stage: rate 0 is frozen."""

    rate: float
    thaw_epoch: int = 1
    part: Part = "all"


@dataclass(frozen=True)
class NamedStrategy:
    """A strategy that a person can choose.

    Attributes:
        rules: (config, stage names) -> one rule a stage, input to head.
        help: when it pays, in one or two sentences.
        source: where it comes from.
        classic: whether forecasts show it beside any other.
    """

    title: str
    help: str
    source: str
    rules: Callable[[RunConfig, Sequence[str]], Sequence[Rule]]
    classic: bool = False


Rules = Callable[[RunConfig, Sequence[str]], Sequence[Rule]]


def _last(count: int) -> Rules:
    def rules(_config: RunConfig, names: Sequence[str]) -> Sequence[Rule]:
        first = max(0, len(names) - count)
        return [Rule(float(index >= first)) for index in range(len(names))]

    return rules


def _first_block(_config: RunConfig, names: Sequence[str]) -> Sequence[Rule]:
    """The stem, the first stage after it, and the new head."""
    return [Rule(float(index < 2 or index == len(names) - 1)) for index in range(len(names))]


def _everything(_config: RunConfig, names: Sequence[str]) -> Sequence[Rule]:
    return [Rule(1.0)] * len(names)


def _only(part: Part) -> Rules:
    def rules(_config: RunConfig, names: Sequence[str]) -> Sequence[Rule]:
        return [*[Rule(1.0, part=part)] * (len(names) - 1), Rule(1.0)]

    return rules


def _discriminative(config: RunConfig, names: Sequence[str]) -> Sequence[Rule]:
    return [Rule(config.layer_decay ** (len(names) - 1 - index)) for index in range(len(names))]


def _probe_then_full(config: RunConfig, names: Sequence[str]) -> Sequence[Rule]:
    thaw = 1 + (config.thaw_every or max(1, config.epochs // 2))
    return [*[Rule(1.0, thaw)] * (len(names) - 1), Rule(1.0)]


def _gradual(config: RunConfig, names: Sequence[str]) -> Sequence[Rule]:
    every = config.thaw_every or max(1, config.epochs // len(names))
    return [Rule(1.0, 1 + every * (len(names) - 1 - index)) for index in range(len(names))]


def _custom(config: RunConfig, names: Sequence[str]) -> Sequence[Rule]:
    known = f"the stages of {config.backbone} are {', '.join(names)}"
    if config.cut is not None:
        if config.cut not in names:
            raise ConfigError({"cut": f"there is no stage {config.cut!r}; {known}"})
        return [Rule(float(index >= names.index(config.cut))) for index in range(len(names))]
    given = config.stage_rates or {}
    if unknown := [name for name in given if name not in names]:
        raise ConfigError({"stage_rates": f"there is no stage {', '.join(map(repr, unknown))}; {known}"})
    if not given.get("head"):
        raise ConfigError({"stage_rates": "the head is new and has to train: give it a rate above 0"})
    return [Rule(given.get(name, 0.0)) for name in names]


STRATEGIES: dict[str, NamedStrategy] = {
    "feature_extraction": NamedStrategy(
        "Feature extraction",
        "Only the new head trains. The fastest, and hard to overfit: right for few images, or images like ImageNet's.",
        "Donahue et al. 2014, DeCAF",
        _last(1),
        classic=True,
    ),
    "last_block": NamedStrategy(
        "Last block",
        "The last stage and the head train. The usual first choice when feature extraction is not good enough.",
        "Yosinski et al. 2014, How transferable are features in deep neural networks?",
        _last(2),
        classic=True,
    ),
    "last_two_blocks": NamedStrategy(
        "Last two blocks",
        "The last two stages and the head train. For images that look unlike ImageNet's, with some hundreds for each class.",
        "Yosinski et al. 2014",
        _last(3),
        classic=True,
    ),
    "full": NamedStrategy(
        "Everything",
        "All stages train. The slowest; pays with many images, or images very unlike ImageNet's.",
        "Kornblith et al. 2019, Do better ImageNet models transfer better?",
        _everything,
        classic=True,
    ),
    "linear_probe_then_full": NamedStrategy(
        "Head first, then everything",
        "The head trains alone, then everything with it. Spoils less of what the network knows: pays when the images it will meet "
        "differ from those it learns from.",
        "Kumar et al. 2022, Fine-tuning can distort pretrained features (LP-FT)",
        _probe_then_full,
    ),
    "gradual_unfreezing": NamedStrategy(
        "Gradual unfreezing",
        "The head first, then one stage more every few epochs. For small data sets that full fine-tuning overfits.",
        "Howard & Ruder 2018, ULMFiT",
        _gradual,
    ),
    "discriminative": NamedStrategy(
        "Slower towards the input",
        "Everything trains, each stage slower than the one after it. A safe way to train all of it.",
        "Howard & Ruder 2018; Bao et al. 2022, BEiT",
        _discriminative,
    ),
    "first_block": NamedStrategy(
        "First block",
        "The stem, the first stage and the head train. Pays when the images differ in their pixels (noise, blur, another camera), "
        "not in what they show.",
        "Lee et al. 2023, Surgical fine-tuning",
        _first_block,
    ),
    "batchnorm_only": NamedStrategy(
        "Norms only",
        "The normalisation layers and the head train: few weights, much effect on how features are scaled.",
        "Frankle et al. 2021, Training BatchNorm and only BatchNorm",
        _only("norms"),
    ),
    "bias_only": NamedStrategy(
        "Biases only",
        "The biases and the head train. A very small change to the network, for small data sets.",
        "Ben Zaken et al. 2022, BitFit; Cai et al. 2020, TinyTL",
        _only("biases"),
    ),
    "from_scratch": NamedStrategy(
        "From scratch",
        "Random weights, everything trains: the control that shows what pretraining was worth.",
        "He et al. 2019, Rethinking ImageNet pre-training",
        _everything,
    ),
    "custom": NamedStrategy(
        "Custom",
        "You decide: click the drawn stages, name the first one that trains, or give each a rate. So any block trains alone.",
        "Lee et al. 2023, Surgical fine-tuning",
        _custom,
    ),
}


def plan(config: RunConfig, stages: Sequence[Stage]) -> Strategy:
    """The config's strategy on these stages.

    Raises:
        ConfigError: when a custom strategy names a stage that is not there, or trains nothing; when a stage would thaw after
            the last epoch.
    """
    rules = STRATEGIES[config.strategy].rules(config, [stage.name for stage in stages])
    if (late := max(rule.thaw_epoch for rule in rules)) > config.epochs:
        raise ConfigError({"thaw_every": f"the last stage would thaw in epoch {late}, but there are {config.epochs}"})
    return tuple(_stage_plan(config, rule, stage) for stage, rule in zip(stages, rules, strict=True))


def _stage_plan(config: RunConfig, rule: Rule, stage: Stage) -> StagePlan:
    planned = StagePlan(stage.name, rule.rate == 0, rule.rate, rule.thaw_epoch, _batchnorm(config, rule), rule.part)
    if rule.rate and not trained_parameters(planned, stage):  # no norms here, say
        return StagePlan(stage.name, True, 0.0, 1, "frozen")
    return planned


def _batchnorm(config: RunConfig, rule: Rule) -> BatchNormMode:
    """Where only biases train, the statistics stay: a moving mean is a moving bias."""
    if rule.rate == 0 or rule.part == "biases":
        return "frozen"
    return "train" if rule.part == "norms" else _MODES[config.batchnorm]


def trained_parameters(plan: StagePlan, stage: Stage) -> tuple[str, ...]:
    """Names of the parameters of a stage that train, at the end of the run at the latest."""
    if plan.frozen:
        return ()
    if plan.part == "biases":
        return tuple(name for name in stage.parameters if name.endswith("bias"))
    if plan.part == "norms":
        return stage.norms
    spared = set() if plan.batchnorm == "train" else set(stage.batchnorms)
    return tuple(name for name in stage.parameters if name not in spared)


def frozen_tensors(plan: StagePlan, stage: Stage) -> tuple[str, ...]:
    """Names of the parameters and buffers of a stage that nothing may change: what an audit compares."""
    if plan.frozen and plan.batchnorm != "frozen":
        return ()
    trained = set(trained_parameters(plan, stage))
    buffers = stage.buffers if plan.batchnorm == "frozen" else ()
    return tuple(name for name in (*stage.parameters, *buffers) if name not in trained)


def cut_index(strategy: Strategy) -> int:
    """Index of the first stage that changes in any way; the stages before it are the trunk."""
    return next(index for index, plan in enumerate(strategy) if not plan.frozen or plan.batchnorm != "frozen")


def trainable_parameters(strategy: Strategy, stages: Sequence[Stage]) -> int:
    """Numbers that train, at the end of the run at the latest."""
    return sum(_trained_count(plan, stage) for stage, plan in zip(stages, strategy, strict=True))


def _trained_count(plan: StagePlan, stage: Stage) -> int:
    return sum(stage.sizes[name] for name in trained_parameters(plan, stage))


def describe(strategy: Strategy, stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """One plain row a stage, input to head: ``name, parameters, trains, trained, rate, thaw_epoch, part``."""
    return [
        {
            "name": stage.name,
            "parameters": stage.parameter_count,
            "trains": not plan.frozen,
            "trained": _trained_count(plan, stage),
            "rate": plan.rate,
            "thaw_epoch": plan.thaw_epoch,
            "part": plan.part,
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
        names = trained_parameters(plan, stage)
        for decay in (weight_decay, 0.0) if weight_decay else (0.0,):
            chosen = [parameters[n] for n in names if not weight_decay or (parameters[n].ndim > 1) == bool(decay)]
            if chosen:
                rate = learning_rate * plan.rate
                groups.append({"params": chosen, "lr": rate, "base_lr": rate, "weight_decay": decay, "stage": stage.name})
    return groups
