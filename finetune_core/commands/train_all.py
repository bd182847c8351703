"""Training of all runs of a comparison, one after the other or in parallel by an executor."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from rich.markup import escape
from rich.progress import Progress, TaskID

from finetune_core.commands.terminal import describe_result, err, progress_bar, stop_on_interrupt
from finetune_core.commands.train import train_reserved
from finetune_core.config import RunConfig
from finetune_core.errors import FinetuneError
from finetune_core.exporters.mlflow import report_to_mlflow
from finetune_core.formatting import pluralize
from finetune_core.runs.design import run_key
from finetune_core.runs.executors.in_process import InProcess
from finetune_core.runs.executors.protocol import Executor
from finetune_core.runs.log import describe_event
from finetune_core.runs.record import create_run
from finetune_core.runs.store import Run, RunStore, summarize_run
from finetune_core.runs.worker import Worker
from finetune_core.training.prepare import check_config
from finetune_core.training.strategies.catalogue import count_epochs

_LOOK = 0.5  # seconds between two looks


@dataclass(frozen=True)
class TrainingResult:
    """The outcome of training the runs of a comparison.

    Attributes:
        runs: finished runs.
        failed: one object per failed run: ``run_dir, seed, problem``.
        stopped: whether training was stopped before all runs had finished.
    """

    runs: list[Run]
    failed: list[dict[str, str | int]]
    stopped: bool


def train_all(
    configs: Sequence[RunConfig],
    runs_dir: Path,
    *,
    reuse: bool,
    executor: Executor | None = None,
    devices: int = 1,
) -> TrainingResult:
    """Train all runs.

    A failed run does not keep the others from training. Ctrl-C stops active runs, and no other
    starts.

    Args:
        configs: settings of the runs.
        runs_dir: folder of the run directories.
        reuse: take finished runs with the same settings from ``runs_dir``.
        executor: executor of the runs. None: this process, one run after the other.
        devices: number of devices for each run that takes steps.

    Raises:
        ConfigError, RunError: if a config cannot work, or not on that many devices, or nothing can
            be written. Nothing is trained then.
    """
    executor = executor or InProcess()
    for config in configs:
        check_config(config, remote=executor.remote)
        executor.check(config, _num_devices(config, devices))
    runs = RunStore(runs_dir).list_runs() if reuse else []
    there = {run_key(run.config): run for run in runs if run.status == "finished"}
    if executor.remote:
        return _train_in_parallel(configs, there, runs_dir, executor, devices)
    return _train_in_sequence(configs, there, runs_dir, devices)


def report_missing(done: TrainingResult, wanted: int) -> None:
    """Report on stderr the runs that did not finish."""
    if done.stopped:
        err.print(
            f"Stopped: {pluralize(len(done.runs), 'run')} of {wanted} trained to the end; --reuse "
            "goes on from there."
        )
    if done.failed:
        err.print(
            f"{pluralize(len(done.failed), 'run')} of {wanted} failed; the others are compared."
        )


def _train_in_sequence(
    configs: Sequence[RunConfig], there: Mapping[str, Run], runs_dir: Path, devices: int
) -> TrainingResult:
    runs: list[Run] = []
    failed: list[dict[str, str | int]] = []
    for number, config in enumerate(configs, 1):
        err.print(_title(number, len(configs), config))
        if earlier := there.get(run_key(config)):
            err.print(escape(f"Trained before: {earlier.run_id}"))
            runs.append(earlier)
            continue
        reservation = create_run(config, runs_dir, devices=_num_devices(config, devices))
        try:
            run = train_reserved(reservation)
        except FinetuneError as error:
            err.print(escape(str(error)))
            failed.append(_failure(reservation.run_dir, config, str(error)))
            continue
        if run.status != "finished":
            return TrainingResult(runs, failed, stopped=True)
        runs.append(run)
    return TrainingResult(runs, failed, stopped=False)


def _train_in_parallel(
    configs: Sequence[RunConfig],
    there: Mapping[str, Run],
    runs_dir: Path,
    executor: Executor,
    devices: int,
) -> TrainingResult:
    worker, store = Worker(runs_dir, after=report_to_mlflow, executor=executor), RunStore(runs_dir)
    earlier: list[Run | None] = [there.get(run_key(config)) for config in configs]
    titles: dict[str, str] = {}
    for number, (config, before) in enumerate(zip(configs, earlier, strict=True), 1):
        title = _title(number, len(configs), config)
        if before:
            err.print(escape(f"{title}: trained before, {before.run_id}"))
        else:
            titles[worker.submit(config, devices=_num_devices(config, devices))] = title
    _watch(worker, store, titles)
    new = iter(titles)
    ended = [before or store.get_run(next(new)) for before in earlier]
    failed = [
        _failure(run.run_dir, run.config, (run.history.end or {}).get("message", ""))
        for run in ended
        if run.status == "failed"
    ]
    stopped = any(run.status not in ("finished", "failed") for run in ended)
    return TrainingResult([run for run in ended if run.status == "finished"], failed, stopped)


def _num_devices(config: RunConfig, devices: int) -> int:
    return devices if count_epochs(config) else 1


def _watch(worker: Worker, store: RunStore, titles: Mapping[str, str]) -> None:
    """Wait until all runs have ended, and report on stderr where each trains and how it ends."""
    stop, num_reported, active = Event(), dict.fromkeys(titles, 0), list(titles)
    with stop_on_interrupt(stop.set), progress_bar() as bar:
        task = bar.add_task("Training", total=len(titles), note="")
        while active or worker.list_queues():
            for run_id in list(active):
                run = store.get_run(run_id)
                _report_places(run, titles[run_id], num_reported)
                if not run.is_active:
                    active.remove(run_id)
                    message = (run.history.end or {}).get("message") or describe_result(
                        summarize_run(run)
                    ).split("\n")[0]
                    err.print(f"{titles[run_id]}: {escape(message)}")
            _update_bar(bar, task, store, active, len(titles))
            if stop.is_set():
                stop.clear()
                _stop_all(worker, active)
            time.sleep(_LOOK)


def _report_places(run: Run, title: str, num_reported: dict[str, int]) -> None:
    for place in run.history.places[num_reported[run.run_id] :]:
        err.print(escape(f"{title}: {describe_event(place)}"))
    num_reported[run.run_id] = len(run.history.places)


def _update_bar(
    bar: Progress, task: TaskID, store: RunStore, active: Sequence[str], runs: int
) -> None:
    shares = [store.get_run(run_id).history.fraction for run_id in active]
    going = sum(share > 0 for share in shares)
    bar.update(
        task, completed=runs - len(active) + sum(shares), note=f"{pluralize(going, 'run')} training"
    )


def _stop_all(worker: Worker, active: Sequence[str]) -> None:
    """Stop waiting runs first, so that none starts when an active run stops."""
    for run_id in sorted(active, key=lambda one: worker.find_position(one) is None):
        worker.stop(run_id)


def _title(number: int, runs: int, config: RunConfig) -> str:
    return f"Run {number} of {runs}: {config.strategy}, seed {config.seed}"


def _failure(run_dir: Path, config: RunConfig, problem: str) -> dict[str, str | int]:
    return {"run_dir": str(run_dir), "seed": config.seed, "problem": problem}
