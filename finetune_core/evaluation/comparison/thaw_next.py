"""Which stage of a run to thaw next, by one rule: does the deepest frozen stage lose what an earlier one still has, and does training reach
for it?"""

from dataclasses import dataclass

from finetune_core.evaluation.comparison.layer_diagnostics import Layers
from finetune_core.formatting import percent, points
from finetune_core.inspection.deep import deepest_good

IDLE = 0.01  # of the gradient, over all epochs: a stage that gets less hardly trains
RULE = (
    "The deepest frozen stage is the next to thaw if a linear model on its features before training does worse on the validation images than "
    "one on those of an earlier stage, by more than one standard error, unless the stage behind it, which trains already, got less than 1 % of the gradient. "
    "The threshold is one standard error, which chance alone exceeds about one time in six: confirm it with a comparison. In every other case there is no advice."
)
_FITTED = 0.99  # of the training images classified correctly: more freedom would fit them no better
STEADY = 0.98  # CKA of a stage that trained without changing its features


@dataclass(frozen=True)
class Advice:
    """What to thaw next.

    Attributes:
        stage: None where nothing is advised.
        what: the advice in a few words.
        reason: in one or more sentences.
    """

    stage: str | None
    what: str
    reason: str


def thaw_next(layers: Layers) -> Advice:
    """Apply ``RULE``: the one-standard-error rule (Breiman et al. 1984) to the probes up to the deepest frozen stage. Deeper ones train
    already, so what their pretrained features were worth does not matter. Where the first of these hardly trained, an earlier one would
    not either."""
    frozen = [stage.name for stage in layers.stages[:-1] if not stage.trains]
    if not frozen:
        return Advice(None, "nothing left to thaw", f"Every stage trains already.{_steady(layers)}")
    names = [stage.name for stage in layers.stages]
    deepest = frozen[-1]
    probes = [one for one in layers.probes if names.index(one.stage) <= names.index(deepest)]
    if not probes or probes[-1].stage != deepest:
        return Advice(
            None,
            "nothing advised",
            "No linear model could be evaluated on the features of the deepest frozen stage.",
        )
    last, best = probes[-1], max(probes, key=lambda one: one.accuracy)
    finding = f"A linear model on the features of {deepest} classifies {percent(last.accuracy)} of the validation images correctly."
    if deepest_good(probes) is last:
        why = f"No earlier stage does better by more than one standard error (± {points(best.error)} points), so this cannot tell whether thawing it helps."
        return Advice(None, "nothing advised", f"{finding} {why}")
    better = f"The best classifies {percent(best.accuracy)} (± {points(best.error)} points), on those of {best.stage}: more than one standard error better."
    behind = layers.stages[names.index(deepest) + 1]
    if (
        behind is not layers.stages[-1]
        and behind.gradient_share is not None
        and behind.gradient_share < IDLE
    ):
        idle = f"But {behind.name}, which trains behind it, got {percent(behind.gradient_share)} of the gradient only: training does not reach for earlier stages."
        return Advice(None, "nothing advised", f"{finding} {better} {idle}")
    return Advice(deepest, f"thaw {deepest} next", f"{finding} {better}{_fitted(layers)}")


def _fitted(layers: Layers) -> str:
    if layers.fitted < _FITTED:
        return ""
    return f" But {percent(layers.fitted, 0)} of the training images are classified correctly as it is, so expect little."


def _steady(layers: Layers) -> str:
    if not (steady := steady_stages(layers)):
        return ""
    return f" The features of {span(steady)} hardly changed (CKA {STEADY} or more): frozen again, with their output cached, training would cost less."


def steady_stages(layers: Layers) -> list[str]:
    """The stages, from the image on, that might as well have stayed frozen: their features are what they were."""
    steady = []
    for stage in layers.stages[:-1]:
        if stage.likeness is None or stage.likeness < STEADY:
            break
        steady.append(stage.name)
    return steady


def span(names: list[str]) -> str:
    """``stem``, ``stem to layer2``."""
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
