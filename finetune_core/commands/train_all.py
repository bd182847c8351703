"""Training the runs of a comparison: one after the other in this process, or beside each other where an executor has them trained."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from rich.markup import escape
from rich.progress import Progress, TaskID

from finetune_core.commands.terminal import describe_result, err, progress_bar, stop_on_interrupt
from finetune_core.commands.train import trained
from finetune_core.config import RunConfig
from finetune_core.errors import FinetuneError
from finetune_core.exporters.mlflow import report_to_mlflow
from finetune_core.formatting import things
from finetune_core.runs.design import run_of
from finetune_core.runs.executors import Executor, InProcess
from finetune_core.runs.log import log_line
from finetune_core.runs.record import create_run
from finetune_core.runs.store import Run, RunStore, summary
from finetune_core.runs.worker import Worker
from finetune_core.training.prepare import check_config
from finetune_core.training.strategies import epochs_of

_LOOK = 0.5  # seconds


@dataclass(frozen=True)
class TrainingResult:
    """What became of the runs of a comparison.

    Attributes:
        failed: one object per run that broke: ``run_dir, seed, problem``.
        stopped: whether somebody stopped it before all had trained.
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
    """Train all runs. One that breaks does not keep the others from training; Ctrl-C stops those that train, and no other begins.

    Args:
        reuse: take finished runs with the same settings from ``runs_dir``.
        executor: who trains them; this process, one after the other, unless another one is given.
        devices: how many train each run that takes steps.

    Raises:
        ConfigError, RunError: when a config cannot work, or not on so many devices, or nothing can be written; then nothing is trained.
    """
    executor = executor or InProcess()
    for config in configs:
        check_config(config, elsewhere=executor.elsewhere)
        executor.check(config, _shared_by(config, devices))
    runs = RunStore(runs_dir).runs() if reuse else []
    there = {run_of(run.config): run for run in runs if run.status == "finished"}
    if executor.elsewhere:
        return _beside_each_other(configs, there, runs_dir, executor, devices)
    return _one_after_the_other(configs, there, runs_dir, devices)


def report_missing(done: TrainingResult, wanted: int) -> None:
    """On stderr: what did not train."""
    if done.stopped:
        err.print(
            f"Stopped: {things(len(done.runs), 'run')} of {wanted} trained to the end; --reuse "
            "goes on from there."
        )
    if done.failed:
        err.print(f"{things(len(done.failed), 'run')} of {wanted} failed; the others are compared.")


def _one_after_the_other(
    configs: Sequence[RunConfig], there: Mapping[str, Run], runs_dir: Path, devices: int
) -> TrainingResult:
    runs: list[Run] = []
    failed: list[dict[str, str | int]] = []
    for number, config in enumerate(configs, 1):
        err.print(_title(number, len(configs), config))
        if found := there.get(run_of(config)):
            err.print(escape(f"Trained before: {found.run_id}"))
            runs.append(found)
            continue
        reservation = create_run(config, runs_dir, devices=_shared_by(config, devices))
        try:
            run = trained(reservation)
        except FinetuneError as error:
            err.print(escape(str(error)))
            failed.append(_failure(reservation.run_dir, config, str(error)))
            continue
        if run.status != "finished":
            return TrainingResult(runs, failed, stopped=True)
        runs.append(run)
    return TrainingResult(runs, failed, stopped=False)


def _beside_each_other(
    configs: Sequence[RunConfig],
    there: Mapping[str, Run],
    runs_dir: Path,
    executor: Executor,
    devices: int,
) -> TrainingResult:
    worker, store = Worker(runs_dir, after=report_to_mlflow, executor=executor), RunStore(runs_dir)
    found: list[Run | None] = [there.get(run_of(config)) for config in configs]
    watched: dict[str, str] = {}
    for number, (config, before) in enumerate(zip(configs, found, strict=True), 1):
        title = _title(number, len(configs), config)
        if before:
            err.print(escape(f"{title}: trained before, {before.run_id}"))
        else:
            watched[worker.submit(config, devices=_shared_by(config, devices))] = title
    _watch(worker, store, watched)
    new = iter(watched)
    ended = [before or store.run(next(new)) for before in found]
    failed = [
        _failure(run.run_dir, run.config, (run.history.end or {}).get("message", ""))
        for run in ended
        if run.status == "failed"
    ]
    stopped = any(run.status not in ("finished", "failed") for run in ended)
    return TrainingResult([run for run in ended if run.status == "finished"], failed, stopped)


def _shared_by(config: RunConfig, devices: int) -> int:
    return devices if epochs_of(config) else 1


def _watch(worker: Worker, store: RunStore, titles: Mapping[str, str]) -> None:
    """Until all runs have ended: on stderr where each trains, and how it ends."""
    stop, said, active = Event(), dict.fromkeys(titles, 0), list(titles)
    with stop_on_interrupt(stop.set), progress_bar() as bar:
        task = bar.add_task("Training", total=len(titles), note="")
        while active or worker.queues():
            for run_id in list(active):
                run = store.run(run_id)
                _tell_places(run, titles[run_id], said)
                if not run.active:
                    active.remove(run_id)
                    words = (run.history.end or {}).get("message") or describe_result(
                        summary(run)
                    ).split("\n")[0]
                    err.print(f"{titles[run_id]}: {escape(words)}")
            _draw(bar, task, store, active, len(titles))
            if stop.is_set():
                stop.clear()
                _stop_all(worker, active)
            time.sleep(_LOOK)


def _tell_places(run: Run, title: str, said: dict[str, int]) -> None:
    for place in run.history.places[said[run.run_id] :]:
        err.print(escape(f"{title}: {log_line(place)}"))
    said[run.run_id] = len(run.history.places)


def _draw(bar: Progress, task: TaskID, store: RunStore, active: Sequence[str], runs: int) -> None:
    shares = [store.run(run_id).history.fraction for run_id in active]
    going = sum(share > 0 for share in shares)
    bar.update(
        task, completed=runs - len(active) + sum(shares), note=f"{things(going, 'run')} training"
    )


def _stop_all(worker: Worker, active: Sequence[str]) -> None:
    """Those that wait first, so that none begins when one that trains stops."""
    for run_id in sorted(active, key=lambda one: worker.waiting(one) is None):
        worker.stop(run_id)


def _title(number: int, runs: int, config: RunConfig) -> str:
    return f"Run {number} of {runs}: {config.strategy}, seed {config.seed}"


def _failure(run_dir: Path, config: RunConfig, problem: str) -> dict[str, str | int]:
    return {"run_dir": str(run_dir), "seed": config.seed, "problem": problem}
