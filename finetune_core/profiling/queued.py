"""Training of the rounds of a profile by the worker's queue, as the app does."""

import time
from collections.abc import Sequence

from finetune_core.config import RunConfig
from finetune_core.errors import TrainingError
from finetune_core.profiling.plan import ROUNDS, Progress
from finetune_core.runs.design import run_key
from finetune_core.runs.store import Run, RunStore
from finetune_core.runs.worker import Worker
from finetune_core.work import Step, Work

_LOOK = 0.5  # seconds
STOPPED = "A run of the profile was stopped. Start the profile again to go on."


def train_in_queue(
    progress: Progress, worker: Worker, store: RunStore, owner: str = "", devices: int = 1
) -> Work[None]:
    """Queue the runs of a round, and wait until all have ended.

    If the generator is closed, the runs are stopped.

    Args:
        progress: progress of the profile.
        worker: the worker.
        store: store of the directory that the runs are in.
        owner: as for ``Worker.submit``.
        devices: as for ``Worker.submit``.

    Yields:
        Steps that count runs, with the round as their subject.

    Raises:
        ConfigError: if a run cannot be queued.
        TrainingError: if somebody has stopped a run.
    """
    run_ids = [_queue(config, worker, store, owner, devices) for config in progress.wanted]
    active = run_ids
    try:
        while active:
            done = len(run_ids) - len(active)
            yield Step(done, len(run_ids), "", ROUNDS[progress.round])
            time.sleep(_LOOK)
            active = [run_id for run_id in active if store.get_run(run_id).is_active]
    except GeneratorExit:
        # Stop waiting runs first, so that none of them starts when the training one stops.
        for run_id in sorted(active, key=lambda one: worker.find_position(one) is None):
            worker.stop(run_id)
        raise
    if _is_any_stopped([store.get_run(run_id) for run_id in run_ids]):
        raise TrainingError(STOPPED)


def _queue(config: RunConfig, worker: Worker, store: RunStore, owner: str, devices: int) -> str:
    """Queue a run, or resume an equal one that was interrupted or stopped, and return its id."""
    same = [run for run in store.list_runs() if run_key(run.config) == run_key(config)]
    for run in same:
        if run.is_active:
            return run.run_id
        if run.is_resumable and run.status != "failed" and run.owner == owner:
            worker.resume(run.run_id, devices)
            return run.run_id
    return worker.submit(config, owner, devices)


def _is_any_stopped(runs: Sequence[Run]) -> bool:
    return any(run.is_resumable and run.status != "failed" for run in runs)
