"""Rules for the next experiment that infer the stages to train from features and gradients."""

from finetune_core.config import RunConfig
from finetune_core.evaluation.comparison.costs import config_depth
from finetune_core.evaluation.comparison.experiment import (
    Evidence,
    Experiment,
    change_config,
    describe_score,
    has_same_features,
    is_only_head,
)
from finetune_core.evaluation.comparison.layer_diagnostics import Layers
from finetune_core.evaluation.comparison.thaw_next import (
    IDLE,
    STEADY,
    advise_next_stage,
    find_steady_stages,
    format_stages,
)
from finetune_core.formatting import format_percent
from finetune_core.training.strategies.catalogue import STRATEGIES


def propose_thaw(evidence: Evidence) -> Experiment | None:
    """Propose to thaw the next stage if the probes of the best measured arm suggest it.

    Nothing is proposed if an arm has trained from that stage on.
    """
    index, layers = _find_best_measured(evidence)
    if layers is None:
        return None
    advice = advise_next_stage(layers)
    if advice.stage is None or _has_trained_from(evidence, index, advice.stage):
        return None
    config = _make_config_from(evidence.own.arms[index].config, layers, advice.stage)
    return Experiment("thaw", advice.what, advice.reason, True, (config,))


def propose_freeze(evidence: Evidence) -> Experiment | None:
    """Propose to freeze stages of the best measured arm that trained without effect.

    Their output is cached then, so the run takes less time.
    """
    index, layers = _find_best_measured(evidence)
    if layers is None:
        return None
    steady = find_steady_stages(layers)
    shares = [
        stage.gradient_share for stage in layers.stages if stage.name in steady and stage.trains
    ]
    known = [share for share in shares if share is not None]
    stage = layers.stages[len(steady)].name
    if (
        not known
        or len(known) < len(shares)
        or sum(known) >= IDLE
        or _has_trained_from(evidence, index, stage)
    ):
        return None
    reason = (
        f"The features of {format_stages(steady)} in {describe_score(evidence.own.arms[index])} "
        f"hardly changed (CKA {STEADY} or more) with {format_percent(sum(known))} of the "
        "gradient, so frozen, with their output cached, they would cost less."
    )
    config = _make_config_from(evidence.own.arms[index].config, layers, stage)
    return Experiment("freeze", f"freeze {format_stages(steady)} again", reason, True, (config,))


def _find_best_measured(evidence: Evidence) -> tuple[int, Layers | None]:
    """Return the index and the layer diagnostics of the best arm that has any.

    Only arms that train everything from one stage on, or the head alone, count.
    """
    for index in evidence.ranking:
        config, layers = evidence.own.arms[index].config, evidence.layers[index]
        cut = (
            STRATEGIES[config.strategy].classic
            or config.cut is not None
            or is_only_head(evidence.own.arms[index])
        )
        if layers and cut:
            return index, layers
    return 0, None


def _has_trained_from(evidence: Evidence, index: int, stage: str) -> bool:
    """Return whether an arm on the same features trained everything from this stage on."""
    arms = evidence.own.arms
    return any(
        arm.depth.first_stage == stage and arm.depth.whole and has_same_features(arm, arms[index])
        for arm in arms
    )


def _make_config_from(config: RunConfig, layers: Layers, stage: str) -> RunConfig:
    """Return the same settings with everything from this stage on trainable.

    A ready-made strategy is preferred, because it may have been timed.
    """
    names = [stage.name for stage in layers.stages]
    for name in (name for name, strategy in STRATEGIES.items() if strategy.classic):
        ready = change_config(config, **config.strategy_changes(name))
        if config_depth(ready, names).first_stage == stage:
            return ready
    return change_config(config, **config.strategy_changes("custom") | {"cut": stage})
