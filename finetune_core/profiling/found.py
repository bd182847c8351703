"""Reconstruction of a profile from its runs alone: its settings, stages and seeds."""

from collections.abc import Sequence

from finetune_core.config import RunConfig, make_config
from finetune_core.profiling.settings import HEAD, SEEDS, SHORT, Setup
from finetune_core.runs.design import features_key, find_profiled_stage
from finetune_core.runs.store import Run
from finetune_core.training.strategies.catalogue import BASELINE

_OWN = {"stage_rates", "seed", "epochs", "warmup_epochs"}


def find_setup(runs: Sequence[Run], data: str, backbone: str) -> Setup | None:
    """Return the settings of the latest profile of a backbone on a data set; None without one.

    Args:
        runs: the runs, the newest first.
        data: the data set.
        backbone: name of the network.
    """
    own = [
        run
        for run in runs
        if run.config.data == data
        and run.config.backbone == backbone
        and run.history.started
        and find_profiled_stage(run.config)
    ]
    if not own:
        return None
    first = _shared_settings(own[0].config)
    own = [run for run in own if _shared_settings(run.config) == first]
    longest = max(run.config.epochs for run in own)
    long = [run for run in own if run.config.epochs == longest]
    stage = long[0].config
    if len(long) == len(own):
        # Only the short round has begun.
        warmup = round(SHORT * stage.warmup_epochs, 2)
        changes = {"epochs": SHORT * longest, "warmup_epochs": warmup}
        stage, long = make_config(stage.model_dump() | changes), []
    trained = {find_profiled_stage(run.config) for run in own}
    sizes = {
        row["name"]: row["parameters"]
        for row in own[0].started["stages"]
        if row["name"] != HEAD and row["name"] in trained
    }
    full = _find_full(runs, stage)
    seeds = _shared_seeds(long)
    # The round of the other seeds has not begun.
    if len(seeds) < 2 and not (full and seeds):
        seeds = SEEDS
    probe = make_config(stage.model_dump() | stage.strategy_changes(BASELINE) | {"seed": seeds[0]})
    full = full or make_config(stage.model_dump() | stage.strategy_changes("full"))
    return Setup(probe, stage, full, sizes, seeds)


def _shared_settings(config: RunConfig) -> str:
    return config.model_dump_json(exclude=_OWN)


def _shared_seeds(long: Sequence[Run]) -> tuple[int, ...]:
    """Return the seeds that at least two stages share."""
    stages: dict[int, set[str | None]] = {}
    for run in long:
        stages.setdefault(run.config.seed, set()).add(find_profiled_stage(run.config))
    return tuple(sorted(seed for seed, stages_of_seed in stages.items() if len(stages_of_seed) > 1))


def _find_full(runs: Sequence[Run], stage: RunConfig) -> RunConfig | None:
    """Return the settings of full fine-tuning; None if no run has them yet."""
    alike = (
        run.config
        for run in runs
        if run.config.strategy == "full"
        and run.config.data == stage.data
        and run.config.initial_head == stage.initial_head
        and features_key(run.config) == features_key(stage)
    )
    return next(alike, None)
