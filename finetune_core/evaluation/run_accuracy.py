"""How accurate a run is, from its events alone: for lists of many runs, whose predictions need not be read."""

from dataclasses import dataclass
from typing import Literal

from finetune_core.evaluation.intervals import accuracy_interval
from finetune_core.runs.store import Run, summary


@dataclass(frozen=True)
class RunAccuracy:
    """An accuracy with its 95 % interval (Wilson 1927).

    Attributes:
        split: whose images; test images where the run has some and has finished.
    """

    value: float
    low: float
    high: float
    split: Literal["test", "val"]
    images: int


def run_accuracy(run: Run) -> RunAccuracy | None:
    """Of the final evaluation; of a run without one, the best epoch's so far. None before the first epoch has ended."""
    known = summary(run)
    split: Literal["test", "val"] = "val" if known["test_accuracy"] is None else "test"
    value, images = known[f"{split}_accuracy"], (known["images"] or {}).get(split)
    if value is None or not images:
        return None
    _, low, high = accuracy_interval(round(value * images), images)
    return RunAccuracy(value, low, high, split, images)
