"""Stage of a run to train next: suggested by the probes, checked against the run."""

from dataclasses import dataclass

from finetune_core.evaluation.comparison.layer_diagnostics import Layers
from finetune_core.formatting import format_percent
from finetune_core.inspection.suggestion import suggest_cut

IDLE = 0.01  # share of the gradient over all epochs, below which a stage hardly trains
RULE = (
    "What the probes of the stages suggest, as on the Dataset page: the stage after the deepest "
    "one whose linear model is within one standard error of the best is the first to train. "
    "Nothing is advised where that deepest one is the last, where the run trains the stage "
    "already, and where the first stage that trains got less than 1 % of the gradient. The "
    "threshold is one standard error, which chance alone exceeds about one time in six: confirm "
    "it with a comparison."
)
_NOTHING = "nothing advised"
_FITTED = 0.99  # training accuracy above which more freedom would not help the fit
STEADY = 0.98  # CKA above which a trained stage has not changed its features


@dataclass(frozen=True)
class Advice:
    """Stage to thaw next.

    Attributes:
        stage: name of the stage; None if nothing is advised.
        what: the advice in a few words.
        reason: one or more sentences.
    """

    stage: str | None
    what: str
    reason: str


def advise_next_stage(layers: Layers) -> Advice:
    """Apply ``suggest_cut`` to a run: advise the suggested stage, unless it trains already.

    If the first trained stage hardly trained, an earlier one would not either, so nothing is
    advised.
    """
    names = [stage.name for stage in layers.stages]
    frozen = [name for name, stage in zip(names, layers.stages, strict=True) if not stage.trains]
    if not [name for name in frozen if name != names[-1]]:
        return Advice(
            None, "nothing left to thaw", f"Every stage trains already.{_describe_steady(layers)}"
        )
    suggestion = suggest_cut(layers.probes, names)
    if suggestion.cut is None:
        return Advice(None, _NOTHING, suggestion.reason)
    if suggestion.cut not in frozen:
        return Advice(None, _NOTHING, f"{suggestion.reason} This run trains {suggestion.cut}.")
    if idle := _describe_idle(layers, suggestion.cut):
        return Advice(None, _NOTHING, f"{suggestion.reason} {idle}")
    what = f"train from {suggestion.cut} on"
    return Advice(suggestion.cut, what, f"{suggestion.reason}{_describe_fit(layers)}")


def _describe_idle(layers: Layers, cut: str) -> str:
    """Return a sentence if the first stage that trains behind the cut got next to no gradient.

    Empty otherwise.
    """
    names = [stage.name for stage in layers.stages]
    behind = next((stage for stage in layers.stages[names.index(cut) :] if stage.trains), None)
    if behind is None or behind is layers.stages[-1] or behind.gradient_share is None:
        return ""
    if behind.gradient_share >= IDLE:
        return ""
    return (
        f"But {behind.name}, the first stage that trains, got "
        f"{format_percent(behind.gradient_share)} of the gradient only: training does not reach "
        "for earlier stages."
    )


def _describe_fit(layers: Layers) -> str:
    if layers.fitted < _FITTED:
        return ""
    return (
        f" But {format_percent(layers.fitted, 0)} of the training images are classified correctly "
        "as it is, so expect little."
    )


def _describe_steady(layers: Layers) -> str:
    if not (steady := find_steady_stages(layers)):
        return ""
    return (
        f" The features of {format_stages(steady)} hardly changed (CKA {STEADY} or more): frozen "
        "again, with their output cached, training would cost less."
    )


def find_steady_stages(layers: Layers) -> list[str]:
    """Return the first stages of the network whose features hardly changed.

    They might as well have stayed frozen.
    """
    stages = []
    for stage in layers.stages[:-1]:
        if stage.likeness is None or stage.likeness < STEADY:
            break
        stages.append(stage.name)
    return stages


def format_stages(names: list[str]) -> str:
    """Return ``stem``, ``stem to layer2``."""
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
