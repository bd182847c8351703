"""An experiment that follows from a comparison: the evidence, what to run, its forecast."""

from dataclasses import dataclass, replace
from typing import Any

from finetune_core.config import RunConfig, make_config
from finetune_core.data.dataset import Dataset
from finetune_core.errors import FinetuneError
from finetune_core.evaluation.comparison.arms import Arm
from finetune_core.evaluation.comparison.compare import Comparison
from finetune_core.evaluation.comparison.layer_diagnostics import Layers
from finetune_core.evaluation.comparison.pair_text import quote
from finetune_core.evaluation.comparison.shift import ShiftComparison
from finetune_core.formatting import duration, memory
from finetune_core.runs.design import arm_seconds, features_of
from finetune_core.training.forecast import Forecast, expected
from finetune_core.training.speed_book import SpeedBook


@dataclass(frozen=True)
class Evidence:
    """The comparison that the rules judge, and what was measured besides.

    Attributes:
        shift: the same arms in the same order, on another data set; None where not all have
            predicted one.
        layers: of each arm; None where they were not measured.
        profiled: data and features that runs of a profile started from.
    """

    own: Comparison
    shift: ShiftComparison | None
    layers: tuple[Layers | None, ...]
    profiled: frozenset[str] = frozenset()

    @property
    def ranking(self) -> list[int]:
        """Places of the arms that trained to the end, the best first.

        Averaged weights are left out: they are no training that can be repeated or changed.
        """
        arms = self.own.arms
        trained = (
            at for at, arm in enumerate(arms) if not arm.unfinished and not arm.config.averaged
        )
        return sorted(trained, key=lambda at: -arms[at].rank)


@dataclass(frozen=True)
class Experiment:
    """A proposal for the next runs.

    Attributes:
        kind: the rule that it follows from, by its name in ``RULES``.
        what: in a few words. reason: one sentence, with the numbers that it rests on.
        inferred: from features or gradients, not from accuracies that were measured.
        configs: of its runs, which differ in their seeds only; empty where Thaw cannot train it.
    """

    kind: str
    what: str
    reason: str
    inferred: bool
    configs: tuple[RunConfig, ...]


def forecast_of(experiment: Experiment, dataset: Dataset, book: SpeedBook) -> Forecast | None:
    """Return the time of all runs one after the other, and the memory of one.

    None where something was not timed, or nothing trains.
    """
    if not experiment.configs:
        return None
    try:
        one = expected(experiment.configs[0], dataset, book)
        seconds = arm_seconds(experiment.configs, dataset, book)
    except FinetuneError:  # the network is gone, say: the page that would train it says so
        return None
    return replace(one, seconds=sum(seconds)) if one and seconds else None


def forecast_in_words(found: Forecast | None) -> str:
    """``about 2 min 10 s, 1.2 GB``; empty where there is none."""
    return (
        f"about {duration(found.seconds)}, {memory(found.memory_bytes, found.device_bytes)}"
        if found
        else ""
    )


def experiment_json(experiment: Experiment | None, found: Forecast | None) -> dict[str, Any] | None:
    """Return plain values: ``kind, what, reason, inferred, runs, forecast``.

    A run has ``backbone, strategy, cut, train_fraction, epochs, seed``, the forecast ``seconds,
    memory_bytes, device_bytes``, or is None.
    """
    if experiment is None:
        return None
    runs = [
        config.model_dump(
            mode="json",
            include={"backbone", "strategy", "cut", "train_fraction", "epochs", "seed"},
        )
        for config in experiment.configs
    ]
    forecast = (
        {name: getattr(found, name) for name in ("seconds", "memory_bytes", "device_bytes")}
        if found
        else None
    )
    return {
        "kind": experiment.kind,
        "what": experiment.what,
        "reason": experiment.reason,
        "inferred": experiment.inferred,
        "runs": runs,
        "forecast": forecast,
    }


def describe_score(arm: Arm) -> str:
    """``“Last block” (84.0 %)``."""
    return f"{quote(arm.title)} ({arm.measure.formatted(arm.score.value)})"


def is_only_head(arm: Arm) -> bool:
    return arm.depth.trained_stages == 1 and arm.config.features_from is None


def has_same_features(arm: Arm, other: Arm) -> bool:
    return features_of(arm.config) == features_of(other.config)


def change(config: RunConfig, **changes: Any) -> RunConfig:
    return make_config(config.model_dump() | changes)
