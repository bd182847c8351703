"""A strategy planned for one network, as data.

It says for each stage whether it trains, how fast, and what its BatchNorm does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_core.config import RunConfig
from finetune_core.errors import ConfigError
from finetune_core.models.network import has_linear_head, network_stages
from finetune_core.models.stages import Stage
from finetune_core.training.events import StageRow
from finetune_core.training.strategies.catalogue import STRATEGIES, Part, Rule

BatchNormMode = Literal["frozen", "statistics", "train"]
_MODES: dict[str, BatchNormMode] = {"auto": "train", "frozen": "frozen", "statistics": "statistics"}


@dataclass(frozen=True)
class StagePlan:
    """Plan for one stage.

    Attributes:
        frozen: Whether its weights never change.
        rate: Factor of the run's learning rate.
        thaw_epoch: Epoch, counted from 1, from which the stage trains.
        batchnorm: ``frozen`` keeps running statistics and affine weights. ``statistics`` lets the
            statistics follow the data. ``train`` trains the affine weights, too.
        part: Which of its weights train. ``all``, ``norms`` (normalisation layers), ``biases``
            (those of norms among them), or ``lora``: factors of what is added to its matrices.
            ``lora_norms``: its normalisation layers, too. ``none``: the stage is replaced by one
            without parameters, as the head of k-NN is.
        rank: With LoRA, the largest rank of those factors.
        scale: With LoRA, what their product is multiplied by.
    """

    stage: str
    frozen: bool
    rate: float
    thaw_epoch: int
    batchnorm: BatchNormMode
    part: Part = "all"
    rank: int = 0
    scale: float = 0.0

    def trains_in(self, epoch: int) -> bool:
        """Return whether the stage trains in an epoch, which is counted from 1."""
        return not self.frozen and epoch >= self.thaw_epoch


Strategy = tuple[StagePlan, ...]


def find_last_stage(config: RunConfig) -> str | None:
    """Return the stage that a config's network ends after, or None for all stages.

    A fitted head is one linear layer. Where the backbone's own head is not, the network ends before
    it.

    Raises:
        ConfigError: If there is no backbone of that name, or it cannot take images of that size.
        WeightsError: If the Hub describes the backbone and that description is not on this machine.
    """
    if (
        config.features_from is None
        and STRATEGIES[config.strategy].fits
        and not has_linear_head(config.backbone, config.image_size)
    ):
        return network_stages(config.backbone, image_size=config.image_size)[-2].name
    return config.features_from


def list_stages(config: RunConfig, classes: int = 1000) -> tuple[Stage, ...]:
    """Return the stages of a config's network without building its weights.

    Raises:
        ConfigError: As ``find_last_stage``, and if the network cannot end where it is to.
        WeightsError: As ``find_last_stage``.
    """
    return network_stages(config.backbone, classes, config.image_size, find_last_stage(config))


def plan_strategy(config: RunConfig, stages: Sequence[Stage]) -> Strategy:
    """Plan the config's strategy for these stages.

    Raises:
        ConfigError: If a custom strategy names a missing stage or trains nothing, or if a stage
            would thaw after the last epoch.
    """
    rules = STRATEGIES[config.strategy].rules(config, [stage.name for stage in stages])
    if (late := max(rule.thaw_epoch for rule in rules)) > (
        1 if STRATEGIES[config.strategy].fits else config.epochs
    ):
        raise ConfigError(
            {
                "thaw_every": f"the last stage would thaw in epoch {late}, but there are "
                f"{config.epochs}"
            }
        )
    return tuple(
        _plan_stage(config, rule, stage) for stage, rule in zip(stages, rules, strict=True)
    )


def _plan_stage(config: RunConfig, rule: Rule, stage: Stage) -> StagePlan:
    rank, scale = (
        (config.lora_rank, config.lora_alpha / config.lora_rank)
        if rule.part in ("lora", "lora_norms")
        else (0, 0.0)
    )
    batchnorm = _choose_batchnorm_mode(config, rule)
    stage_plan = StagePlan(
        stage.name, rule.rate == 0, rule.rate, rule.thaw_epoch, batchnorm, rule.part, rank, scale
    )
    # A stage may have no norms, for example.
    if rule.rate and rule.part != "none" and not _count_trained(stage_plan, stage):
        return StagePlan(stage.name, True, 0.0, 1, "frozen")
    return stage_plan


def _choose_batchnorm_mode(config: RunConfig, rule: Rule) -> BatchNormMode:
    """Return what BatchNorm does in a stage.

    Where only biases or factors train, the statistics stay: a moving mean is a moving bias.
    """
    if rule.rate == 0 or rule.part in ("biases", "lora"):
        return "frozen"
    return "train" if rule.part in ("norms", "lora_norms") else _MODES[config.batchnorm]


def list_trained_parameters(plan: StagePlan, stage: Stage) -> tuple[str, ...]:
    """Return the names of a stage's parameters that train themselves, at the latest at the end."""
    if plan.frozen or plan.part == "lora":
        return ()
    if plan.part == "biases":
        return tuple(name for name in stage.parameters if name.endswith("bias"))
    if plan.part in ("norms", "lora_norms"):
        return stage.norms
    frozen = set() if plan.batchnorm == "train" else set(stage.batchnorms)
    return tuple(name for name in stage.parameters if name not in frozen)


def factored_matrices(plan: StagePlan, stage: Stage) -> Mapping[str, tuple[int, int]]:
    """Return the shape (rows, columns) of each parameter that low-rank factors change, by name."""
    return stage.matrices if plan.rank and not plan.frozen else {}


def list_frozen_tensors(plan: StagePlan, stage: Stage) -> tuple[str, ...]:
    """Return the names of a stage's parameters and buffers that nothing may change.

    An audit compares these.
    """
    if plan.frozen and plan.batchnorm != "frozen":
        return ()
    trained = {*list_trained_parameters(plan, stage), *factored_matrices(plan, stage)}
    buffers = stage.buffers if plan.batchnorm == "frozen" else ()
    return tuple(name for name in (*stage.parameters, *buffers) if name not in trained)


def cut_index(strategy: Strategy) -> int:
    """Return the index of the first stage that changes in any way.

    The stages before it are the trunk.
    """
    return next(
        index
        for index, plan in enumerate(strategy)
        if not plan.frozen or plan.batchnorm != "frozen"
    )


def count_trainable_parameters(strategy: Strategy, stages: Sequence[Stage]) -> int:
    """Return how many numbers the data decide: trained by the end of the run, or fitted.

    A linear probe and prototypes fit the head's weight and bias. k-NN has no parameters: it stores
    the training images' features.
    """
    return sum(_count_trained(plan, stage) for stage, plan in zip(stages, strategy, strict=True))


def count_parameters(strategy: Strategy, stages: Sequence[Stage]) -> int:
    """Return how many parameters the run's network has."""
    return sum(_count_parameters(plan, stage) for stage, plan in zip(stages, strategy, strict=True))


def count_factored(strategy: Strategy, stages: Sequence[Stage]) -> int:
    """Return the size of all parameters that low-rank factors change."""
    shapes = [
        factored_matrices(plan, stage).values()
        for stage, plan in zip(stages, strategy, strict=True)
    ]
    return sum(rows * columns for each in shapes for rows, columns in each)


def _count_parameters(plan: StagePlan, stage: Stage) -> int:
    return 0 if plan.part == "none" else stage.parameter_count


def _count_trained(plan: StagePlan, stage: Stage) -> int:
    if plan.part == "none":
        return 0
    factors = sum(
        min(plan.rank, *shape) * sum(shape) for shape in factored_matrices(plan, stage).values()
    )
    return factors + sum(stage.sizes[name] for name in list_trained_parameters(plan, stage))


def describe_strategy(strategy: Strategy, stages: Sequence[Stage]) -> list[StageRow]:
    """Return one plain row per stage, input to head.

    Each holds ``name, parameters, trains, trained, rate, thaw_epoch, part``.
    """
    return [
        {
            "name": stage.name,
            "parameters": _count_parameters(plan, stage),
            "trains": not plan.frozen,
            "trained": _count_trained(plan, stage),
            "rate": plan.rate,
            "thaw_epoch": plan.thaw_epoch,
            "part": plan.part,
        }
        for stage, plan in zip(stages, strategy, strict=True)
    ]
