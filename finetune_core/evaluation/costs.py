"""What a run cost, read back from its folder: time with and without the cache, memory, disk; and how deep it was cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from finetune_core.runs.store import Run
from finetune_core.training.checkpoints import BEST
from finetune_core.training.strategies import STRATEGIES


@dataclass(frozen=True)
class Cost:
    """Of one run; of several: the median.

    Attributes:
        seconds: all of it, decoding included.
        uncached_seconds: what it would have taken had the frozen stages run in every epoch; None where nobody can tell.
        trainable_parameters: of the total.
        memory_bytes: what the run added to the program's memory.
        disk_bytes: the best checkpoint, which holds what trained.
    """

    seconds: float
    uncached_seconds: float | None
    trainable_parameters: int
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True)
class Depth:
    """How deep a run was cut.

    Attributes:
        trained_stages: how many, from the first that trains to the head.
        first_stage: that first one.
        whole: whether all of each of them trains.
    """

    trained_stages: int
    first_stage: str
    whole: bool


def cost(run: Run) -> Cost:
    """Of a run with at least one ended epoch."""
    history, best = run.history, run.run_dir / f"{BEST}.safetensors"
    seconds = (history.end or {}).get("seconds") or timeline(run)[-1]["seconds"]
    saved = history.saved_seconds()
    return Cost(
        seconds,
        None if saved is None else seconds + saved,
        history.started["trainable_parameters"],
        max(row["memory_bytes"] for row in history.epochs),
        best.stat().st_size if best.is_file() else 0,
    )


def usual_cost(costs: Sequence[Cost]) -> Cost:
    """The median, figure by figure: the first run of several pays for decoding and trunk alone."""
    uncached = [one.uncached_seconds for one in costs if one.uncached_seconds is not None]
    return Cost(
        median(one.seconds for one in costs),
        median(uncached) if uncached else None,
        costs[0].trainable_parameters,
        round(median(one.memory_bytes for one in costs)),
        round(median(one.disk_bytes for one in costs)),
    )


def timeline(run: Run) -> list[dict[str, Any]]:
    """The run's epochs, with ``seconds`` since it began: what came before the first step counted in."""
    started = run.history.started
    before = started["decode_seconds"] + started["cache"]["trunk_seconds"]
    return [row | {"seconds": row["seconds"] + before} for row in run.history.epochs]


def depth(run: Run) -> Depth:
    """Of a run that has started."""
    names = [stage["name"] for stage in run.history.started["stages"]]
    rules = STRATEGIES[run.config.strategy].rules(run.config, names)
    first = next(index for index, rule in enumerate(rules) if rule.rate > 0)
    return Depth(len(names) - first, names[first], all(rule.rate > 0 and rule.part == "all" for rule in rules[first:]))
