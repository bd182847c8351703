"""Which stage to thaw next, with its reason: where frozen features stop getting better, and what training would pull at."""

from dataclasses import dataclass

from finetune_core.evaluation.layers import Layers, StageMove
from finetune_core.inspection.deep import suggest
from finetune_core.models.network import network_stages
from finetune_core.words import percent

_FITTED = 0.99  # of the training images named right: more freedom would fit them no better
_STEADY = 0.98  # CKA of a stage that trained without changing what it makes


@dataclass(frozen=True)
class Advice:
    """What to thaw next.

    Attributes:
        stage: None where there is no reason to thaw any.
        reason: in words.
    """

    stage: str | None
    reason: str


def thaw_next(layers: Layers, backbone: str) -> Advice:
    """The last frozen stage behind the one whose frozen features serve a linear model best; without such a model, the frozen stage that
    the gradient would change most."""
    frozen = [stage for stage in layers.stages[:-1] if not stage.trains]
    if not frozen:
        return Advice(None, f"Every stage trains already.{_steady(layers)}")
    if not layers.probes:
        hardest = max(frozen, key=lambda stage: stage.pull)
        told = "No linear model could be judged here, so only the gradient tells: of the frozen stages, it is the greatest"
        return Advice(hardest.name, f"{told} in {hardest.name}, {percent(hardest.pull)} of its weights.{_fitted(layers)}")
    suggestion = suggest(list(layers.probes), backbone)
    names = [stage.name for stage in network_stages(backbone)]
    late = [stage for stage in frozen if names.index(stage.name) >= names.index(suggestion.cut)]
    if not late:
        return Advice(None, f"{suggestion.reason} That much trains already.")
    return Advice(late[-1].name, f"{suggestion.reason} {_pulled(late[-1], layers)}{_fitted(layers)}")


def _pulled(stage: StageMove, layers: Layers) -> str:
    trained = [other.pull for other in layers.stages[:-1] if other.trains]
    beside = f", against {percent(max(trained))} at most in the stages that did train" if trained else ""
    return f"Were {stage.name} free now, its gradient would be {percent(stage.pull)} of its weights{beside}."


def _fitted(layers: Layers) -> str:
    if layers.fitted < _FITTED:
        return ""
    return f" But {percent(layers.fitted, 0)} of the training images are named right as it is, so expect little."


def _steady(layers: Layers) -> str:
    """The stages, from the image on, that might as well have stayed frozen."""
    steady = []
    for stage in layers.stages[:-1]:
        if stage.likeness is None or stage.likeness < _STEADY:
            break
        steady.append(stage.name)
    if not steady:
        return ""
    first = steady[0] if len(steady) == 1 else f"{steady[0]} to {steady[-1]}"
    return (
        f" What {first} {'makes' if len(steady) == 1 else 'make'} of an image hardly changed (CKA {_STEADY} or more): frozen again, with "
        "their output kept, training would cost less."
    )
