"""Experiment that follows from a comparison: the evidence, its runs, its forecast."""

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
from finetune_core.formatting import format_duration, format_memory
from finetune_core.runs.design import features_key, forecast_arm
from finetune_core.training.devices.speed_book import SpeedBook
from finetune_core.training.forecast.forecast import Forecast, forecast_run


@dataclass(frozen=True)
class Evidence:
    """Input of the rules: the comparison, and further measurements of its runs.

    Attributes:
        own: the comparison on the runs' own images.
        shift: the same arms in the same order on another data set; None if some runs have not
            predicted one.
        layers: layer diagnostics of each arm; None if they were not measured.
        profiled: keys of data and features that runs of a profile started from.
    """

    own: Comparison
    shift: ShiftComparison | None
    layers: tuple[Layers | None, ...]
    profiled: frozenset[str] = frozenset()

    @property
    def ranking(self) -> list[int]:
        """Indices of the arms that trained to the end, the best first.

        Averaged weights are left out, because averaging is no training that can be repeated or
        changed.
        """
        arms = self.own.arms
        trained = (
            index
            for index, arm in enumerate(arms)
            if not arm.unfinished and not arm.config.averaged
        )
        return sorted(trained, key=lambda index: -arms[index].rank)


@dataclass(frozen=True)
class Experiment:
    """A proposal for the next runs.

    Attributes:
        kind: name in ``RULES`` of the rule that proposed it.
        what: the experiment in a few words.
        reason: one sentence, with the numbers that it rests on.
        inferred: True if the proposal rests on features or gradients, not on measured accuracies.
        configs: settings of the runs, which differ in their seeds only; empty if Thaw cannot train
            the experiment.
    """

    kind: str
    what: str
    reason: str
    inferred: bool
    configs: tuple[RunConfig, ...]


def forecast_experiment(
    experiment: Experiment, dataset: Dataset, book: SpeedBook
) -> Forecast | None:
    """Return the forecast time of all runs in sequence, and the memory of one run.

    None if a speed is not known, or nothing trains.
    """
    if not experiment.configs:
        return None
    try:
        forecast = forecast_run(experiment.configs[0], dataset, book)
        seconds = forecast_arm(experiment.configs, dataset, book)
    except FinetuneError:  # a missing network, for example: the page that would train it says so
        return None
    return replace(forecast, seconds=sum(seconds)) if forecast and seconds else None


def describe_forecast(forecast: Forecast | None) -> str:
    """Return ``about 2 min 10 s, 1.2 GB``; empty without a forecast."""
    return (
        f"about {format_duration(forecast.seconds)}, "
        f"{format_memory(forecast.memory_bytes, forecast.device_bytes)}"
        if forecast
        else ""
    )


def experiment_json(
    experiment: Experiment | None, forecast: Forecast | None
) -> dict[str, Any] | None:
    """Return plain values: ``kind, what, reason, inferred, runs, forecast``.

    A run has ``backbone, strategy, cut, train_fraction, epochs, seed``. The forecast has ``seconds,
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
    forecast_values = (
        {name: getattr(forecast, name) for name in ("seconds", "memory_bytes", "device_bytes")}
        if forecast
        else None
    )
    return {
        "kind": experiment.kind,
        "what": experiment.what,
        "reason": experiment.reason,
        "inferred": experiment.inferred,
        "runs": runs,
        "forecast": forecast_values,
    }


def describe_score(arm: Arm) -> str:
    """Return ``“Last block” (84.0 %)``."""
    return f"{quote(arm.title)} ({arm.measure.format_value(arm.score.value)})"


def is_only_head(arm: Arm) -> bool:
    """Return whether the arm trains the head alone, on the backbone's last features."""
    return arm.depth.trained_stages == 1 and arm.config.features_from is None


def has_same_features(first: Arm, second: Arm) -> bool:
    """Return whether two arms start from the same features."""
    return features_key(first.config) == features_key(second.config)


def change_config(config: RunConfig, **changes: Any) -> RunConfig:
    """Return a config with some settings changed."""
    return make_config(config.model_dump() | changes)
