"""Suggested stages to train, by the linear probe of each stage: the rule that all advice follows.

The rule is the one-standard-error rule (Breiman et al. 1984). Among the stages whose probe is
within one standard error of the best one, the deepest may stay frozen, and so may all stages before
it. Training starts behind it. If it is the last stage, the probes suggest no stage: features that
are as good as any say nothing about what training would add to them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_core.config import make_config
from finetune_core.formatting import format_percent, format_points
from finetune_core.inspection.learned import Probe
from finetune_core.models.network import network_stages
from finetune_core.training.strategies.catalogue import STRATEGIES
from finetune_core.training.strategies.stage_plan import cut_index, plan_strategy


@dataclass(frozen=True)
class Suggestion:
    """The first stage to train.

    Attributes:
        cut: its name; None if the probes suggest none.
        reason: one or more sentences.
    """

    cut: str | None
    reason: str


def suggest_cut(probes: Sequence[Probe], stages: Sequence[str]) -> Suggestion:
    """Suggest to train all stages behind the deepest one whose frozen features are as good as any.

    Args:
        probes: from the input to the head, one for each stage that could be probed.
        stages: names of all stages, from the input to the head.
    """
    if not probes:
        return Suggestion(None, "No linear model could be evaluated on the features of any stage.")
    good, last = find_deepest_good(probes), probes[-1]
    if good is last:
        return Suggestion(
            None,
            f"No stage's frozen features do better than those of {last.stage}, the last one "
            f"({_format_accuracy(last)}), by more than one standard error, so the probes cannot "
            "tell whether training any of them helps. Compare the linear probe with the last "
            "block.",
        )
    cut = stages[stages.index(good.stage) + 1]
    return Suggestion(
        cut,
        f"A linear model on the frozen features of {good.stage} classifies "
        f"{_format_accuracy(good)} of the validation images correctly. All deeper stages do worse "
        f"than the best by more than one standard error ({format_percent(last.accuracy)} at the "
        f"end), so train from {cut} on.",
    )


def find_deepest_good(probes: Sequence[Probe]) -> Probe:
    """Return the deepest stage whose probe is within one standard error of the best one.

    Args:
        probes: from the input to the head.
    """
    best = max(probes, key=lambda probe: probe.accuracy)
    return [probe for probe in probes if probe.accuracy >= best.accuracy - best.error][-1]


def find_strategy(cut: str, backbone: str, image_size: int | None = None) -> str:
    """Return the ready-made strategy that trains from this stage on, or ``custom``.

    Args:
        cut: name of the stage.
        backbone: name of the network.
        image_size: side of the images; None for the size that the backbone was pretrained on.
    """
    stages = network_stages(backbone, image_size=image_size)
    index = [stage.name for stage in stages].index(cut)
    for name, strategy in STRATEGIES.items():
        if strategy.classic:
            config = make_config({"data": "any", "backbone": backbone, "strategy": name})
            if cut_index(plan_strategy(config, stages)) == index:
                return name
    return "custom"


def _format_accuracy(probe: Probe) -> str:
    return f"{format_percent(probe.accuracy)} ± {format_points(probe.error)} points"
