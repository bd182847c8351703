"""Headline accuracy of a run, read from its events alone, and the best of several runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from finetune_core.config import RunConfig
from finetune_core.evaluation.intervals import accuracy_interval
from finetune_core.formatting import accuracy_name, format_percent
from finetune_core.runs.store import Run, find_best_epoch

Split = Literal["test", "val"]


@dataclass(frozen=True)
class RunAccuracy:
    """An accuracy with its 95 % interval (Wilson 1927).

    Attributes:
        value: the accuracy.
        low: lower end of the interval.
        high: upper end of the interval.
        split: ``test`` if the run has test images and has finished, else ``val``.
        images: number of images of the split.
    """

    value: float
    low: float
    high: float
    split: Split
    images: int

    @property
    def name(self) -> str:
        """The label: ``Test accuracy`` or ``Validation accuracy``."""
        return accuracy_name(self.split)

    def to_text(self) -> str:
        """Return text for the middle of a sentence: ``test accuracy 97.8 %``."""
        return f"{self.name.lower()} {format_percent(self.value)}"


def run_accuracy(run: Run) -> RunAccuracy | None:
    """Return the accuracy of the final evaluation, or of the best epoch so far.

    None before the first epoch has ended.
    """
    split: Split = "val" if split_accuracy(run, "test") is None else "test"
    value = split_accuracy(run, split)
    images = (run.history.started or {}).get("counts", {}).get(split)
    if value is None or not images:
        return None
    _, low, high = accuracy_interval(round(value * images), images)
    return RunAccuracy(value, low, high, split, images)


def split_accuracy(run: Run, split: str) -> float | None:
    """Return a run's accuracy on ``test`` or ``val``; None where it is not known.

    The accuracy is that of the final evaluation, or of the best epoch so far, which has no test
    accuracy.
    """
    end: float | None = (run.history.end or {}).get(f"{split}_accuracy")
    live: float | None = find_best_epoch(run).get(f"{split}_accuracy")
    return live if end is None else end


def best_run(runs: Iterable[Run]) -> Run | None:
    """Return the finished run with the highest validation accuracy; ties go to the lowest loss.

    Test images play no part in the choice, so that the test accuracy of the run is not optimistic.
    """
    finished = [run for run in runs if run.status == "finished"]
    return max(finished, key=_validation_score, default=None)


def _validation_score(run: Run) -> tuple[float, float]:
    end = run.history.end or {}
    return end["val_accuracy"], -end["val_loss"]


def training_key(config: RunConfig) -> tuple[str, ...]:
    """Return a key that is equal for configs with equal backbone, initial weights and strategy.

    The backbone comes first.
    """
    rates = sorted((config.stage_rates or {}).items())
    stage = config.cut or config.features_from or config.lora_from or ""
    return config.backbone, config.initial_weights, config.strategy, stage, str(rates)


def find_best_runs(runs: Iterable[Run], fingerprint: str) -> dict[tuple[str, ...], Run]:
    """Return the best run of each ``training_key`` on the data set with that fingerprint.

    Runs with averaged weights are left out, because averaging is not a way to train.
    """
    ways: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        started = run.history.started or {}
        if not run.config.averaged and started.get("fingerprint") == fingerprint:
            ways.setdefault(training_key(run.config), []).append(run)
    best = {way: best_run(way_runs) for way, way_runs in ways.items()}
    return {way: run for way, run in best.items() if run}
