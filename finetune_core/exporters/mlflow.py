"""A run that has ended -> a run on an MLflow server, where ``MLFLOW_TRACKING_URI`` names one."""

import json
import os
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from finetune_core.exporters.card import CARD, card
from finetune_core.exporters.source import load_source, shared_settings
from finetune_core.exporters.tensorboard import Scalar, by_epoch
from finetune_core.runs.store import Run, RunStore, summary

URI = "MLFLOW_TRACKING_URI"
_EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"
# Where a person has not decided otherwise. The next run may wait for this one to be reported; stdout is for results; nobody else
# is informed that MLflow is used.
_MANNERS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_STATUS = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "cancelled": "KILLED",
    "paused": "KILLED",
    "failed": "FAILED",
    "interrupted": "FAILED",
}
_ID, _UNTIL = "thaw.run_id", "thaw.reported_until"
_A_REQUEST = 1000  # metrics: MLflow takes no more
_CREDENTIALS = re.compile(r"//[^/@\s]+@")


def report_to_mlflow(run_dir: Path) -> str:
    """Report an ended run: settings, metrics by epoch, tags, model card. One that was reported before is added to.

    Returns:
        Empty when it was reported, or when no server is named; else a warning in one line. Nothing is raised: a run that has
        ended well stays so when a server does not answer.
    """
    if not os.environ.get(URI):
        return ""
    for name, value in _MANNERS.items():
        os.environ.setdefault(name, value)  # some are read when MLflow is imported
    try:
        import_module("mlflow")
    except ImportError:
        return f"{URI} is set, but MLflow is not installed, so nothing was reported to it: python -m pip install mlflow"
    try:
        _report(RunStore(run_dir.parent).read(run_dir))
    except Exception as error:  # a server, its network and its client fail in ways of their own
        lines = _CREDENTIALS.sub("//", str(error)).strip().splitlines() or [""]
        return f"The run was not, or not all, reported to MLflow ({type(error).__name__}: {lines[0][:200]}). The run itself is not affected."
    return ""


def _report(run: Run) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    client = MlflowClient()
    there, until = _found(client, run)
    new = [
        Metric(name, value, round(at * 1000), step)
        for name, value, step, at in _metrics(run)
        if at > until
    ]
    params = [
        Param(name, value if isinstance(value, str) else json.dumps(value))
        for name, value in shared_settings(run).items()
    ]
    client.log_batch(
        there, params=params, tags=[RunTag(name, value) for name, value in _tags(run).items()]
    )
    for start in range(0, len(new), _A_REQUEST):
        client.log_batch(there, metrics=new[start : start + _A_REQUEST])
    if new:
        client.set_tag(there, _UNTIL, repr(max(at for *_, at in _metrics(run))))
    client.log_text(there, json.dumps(shared_settings(run), indent=2), "settings.json")
    if run.judged:
        client.log_text(there, card(load_source(run)), CARD)
    ended = (run.history.end or {}).get("at")
    client.set_terminated(there, _STATUS[run.status], round(ended * 1000) if ended else None)


def _found(client: Any, run: Run) -> tuple[str, float]:
    """The run's own run on the server, made where there is none; and the time up to which it was reported before."""
    name = os.environ.get(_EXPERIMENT) or "Thaw"
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else client.create_experiment(name)
    quote = '"' if "'" in run.run_id else "'"
    for known in client.search_runs(
        [number], f"tags.`{_ID}` = {quote}{run.run_id}{quote}", max_results=1
    ):
        return known.info.run_id, float(known.data.tags.get(_UNTIL, 0))
    began = (run.history.started or {}).get("at")
    made = client.create_run(
        number, round(began * 1000) if began else None, {_ID: run.run_id}, run.name or run.run_id
    )
    return made.info.run_id, 0.0


def _metrics(run: Run) -> Iterator[Scalar]:
    """By epoch: loss and scores of both splits, and what was last measured of each stage; at the end the final evaluation."""
    for split in ("train", "val"):
        for tag, value, epoch, at in by_epoch(run.history, split):
            yield f"{split}_{tag.removeprefix('epoch/')}", value, epoch, at
    for row in run.history.epochs:
        for stage, values in (row.get("stages") or {}).items():
            for name, value in values.items():
                yield f"{name}/{stage}", value, row["epoch"], row["at"]
    row, end = summary(run), run.history.end
    names = {"test_accuracy": "test_accuracy", "seconds": "seconds"}
    if end and end.get("evaluation_precision"):  # else they are those of an epoch
        names |= {"val_accuracy": "final_val_accuracy", "val_loss": "final_val_loss"}
    for name, metric in names.items():
        if end and row[name] is not None:
            yield metric, row[name], row["best_epoch"] or 0, end["at"]


def _tags(run: Run) -> dict[str, str]:
    row = summary(run)
    tags = {
        f"thaw.{name}": str(row[name])
        for name in (
            "status",
            "backbone",
            "strategy",
            "device",
            "precision",
            "evaluation_precision",
            "trainable_parameters",
        )
    }
    return tags | ({"mlflow.note.content": run.note} if run.note else {})
