"""Cost of a run, read from its directory: time with and without the cache, memory, disk, depth."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

from finetune_core.config import RunConfig
from finetune_core.errors import RunError
from finetune_core.files import stat_regular
from finetune_core.runs.store import Run
from finetune_core.training.checkpoints.files import BEST, checkpoint_path
from finetune_core.training.checkpoints.networks import member_folders
from finetune_core.training.strategies.catalogue import STRATEGIES
from finetune_core.training.strategies.stage_plan import list_stages


@dataclass(frozen=True)
class Cost:
    """Cost of one run, or usual cost of several.

    Attributes:
        seconds: total time, decoding included.
        uncached_seconds: time if the frozen stages had run in every epoch; None if unknown.
        trainable_parameters: number of parameters that train.
        memory_bytes: main memory: measured for the run's tensors, or forecast if that is more.
        device_bytes: GPU memory, not included in ``memory_bytes``; None if the CPU trained, or
            nothing was measured.
        device: kind of the device that trained; all of them, with commas, if several runs used
            different ones.
        disk_bytes: size of the best checkpoint, which holds what was trained.
    """

    seconds: float
    uncached_seconds: float | None
    trainable_parameters: int
    memory_bytes: int
    device_bytes: int | None
    device: str
    disk_bytes: int


@dataclass(frozen=True)
class Depth:
    """Depth of a run's cut.

    Attributes:
        trained_stages: number of stages from the first that trains to the head.
        first_stage: name of the first stage that trains.
        whole: True if all parameters of each of these stages train.
    """

    trained_stages: int
    first_stage: str
    whole: bool


def run_cost(run: Run, rate: float | None = None) -> Cost:
    """Return the cost of a run that has predictions.

    Args:
        run: the run.
        rate: seconds that its frozen stages take for an image, from ``trunk_rate``.
    """
    history, started = run.history, run.started
    seconds = (history.end or {}).get("seconds") or timeline(run)[-1]["seconds"]
    counts, cache = started["counts"], started["cache"]
    measured = [
        *history.epochs,
        *([history.result_without_epochs] if history.result_without_epochs else []),
    ]
    passed = len(history.epochs) * (counts["train"] + counts["val"])
    return Cost(
        seconds,
        None if rate is None else seconds + max(0.0, passed * rate - cache["trunk_seconds"]),
        started["trainable_parameters"],
        max(
            *(row["memory_bytes"] for row in measured),
            (started.get("forecast") or {}).get("memory_bytes", 0),
        ),
        _max_known([row["device_bytes"] for row in measured]),
        started["device"],
        disk_bytes(run),
    )


def disk_bytes(run: Run) -> int:
    """Return the size of the best checkpoint; for an ensemble, of all checkpoints that it keeps."""
    folders = [run.run_dir]
    if run.config.is_ensemble:
        with suppress(RunError):  # the folder of its networks is a link
            folders += member_folders(run.config, run.run_dir)
    files = [stat_regular(checkpoint_path(folder, BEST)) for folder in folders]
    return sum(file.st_size for file in files if file)


def trunk_rate(arm: Sequence[Run], runs: Sequence[Run]) -> float | None:
    """Return the seconds per image of an arm's frozen stages, which a cache spares.

    0 without a cache; None if nobody timed them. Features that were computed from a shallower cut
    were never timed from the pixels on. Then the rate of the deepest of the shallower cuts among
    ``runs`` is returned, which is slightly too low.
    """
    if all(run.started["cache"]["where"] == "off" for run in arm):
        return 0.0
    timed: list[float] = [rate for run in arm if (rate := run.started["cache"]["seconds_per_row"])]
    if timed:
        return median(timed)
    own_depth = run_depth(arm[0]).trained_stages
    shallower = [
        (-run_depth(run).trained_stages, rate)
        for run in runs
        if (rate := run.started["cache"]["seconds_per_row"])
        and (run.config.backbone, run.config.image_size)
        == (arm[0].config.backbone, arm[0].config.image_size)
        and run_depth(run).trained_stages >= own_depth
    ]
    return max(shallower)[1] if shallower else None


def usual_cost(costs: Sequence[Cost]) -> Cost:
    """Return the median time and the most memory.

    The median is used because the first run of several pays for decoding and trunk alone.
    """
    uncached = [cost.uncached_seconds for cost in costs if cost.uncached_seconds is not None]
    devices = sorted({cost.device for cost in costs})
    return Cost(
        median(cost.seconds for cost in costs),
        median(uncached) if uncached else None,
        costs[0].trainable_parameters,
        max(cost.memory_bytes for cost in costs),
        _max_known([cost.device_bytes for cost in costs]) if len(devices) == 1 else None,
        ", ".join(devices),
        round(median(cost.disk_bytes for cost in costs)),
    )


def _max_known(values: Sequence[int | None]) -> int | None:
    """Return the largest value; None if one is not known."""
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None


def timeline(run: Run) -> list[dict[str, Any]]:
    """Return the run's epochs with ``seconds`` since the run began.

    These include the time before the first step.
    """
    before = run.started["decode_seconds"] + run.started["cache"]["trunk_seconds"]
    return [row | {"seconds": row["seconds"] + before} for row in run.history.epochs]


def config_depth(config: RunConfig, names: Sequence[str] | None = None) -> Depth:
    """Return the depth of a config's cut.

    Args:
        config: the settings.
        names: names of the backbone's stages, if known.

    Raises:
        ConfigError: if the strategy does not fit the backbone.
    """
    names = names or [stage.name for stage in list_stages(config)]
    rules = STRATEGIES[config.strategy].rules(config, names)
    first = next(index for index, rule in enumerate(rules) if rule.rate > 0)
    return Depth(
        len(names) - first,
        names[first],
        all(rule.rate > 0 and rule.part in ("all", "none") for rule in rules[first:]),
    )


def run_depth(run: Run) -> Depth:
    """Return the depth of a run that has started."""
    return config_depth(run.config, [stage["name"] for stage in run.started["stages"]])
