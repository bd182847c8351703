"""Reports of ended runs to the MLflow server that ``MLFLOW_TRACKING_URI`` names."""

import json
import os
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from finetune_core.exporters.card import CARD, build_card
from finetune_core.exporters.source import get_shareable_settings, load_source
from finetune_core.exporters.tensorboard import Scalar, iter_epoch_scalars
from finetune_core.runs.store import Run, RunStore, summarize_run

URI = "MLFLOW_TRACKING_URI"
_EXPERIMENT = "MLFLOW_EXPERIMENT_NAME"
# Set only where the user has not. The next run may wait for the report, stdout is for results,
# and nobody else is told that MLflow is used.
_DEFAULT_ENVIRONMENT = {
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
_RUN_ID_TAG, _REPORTED_UNTIL_TAG = "thaw.run_id", "thaw.reported_until"
_MAX_METRICS_PER_REQUEST = 1000  # MLflow's limit
_CREDENTIALS = re.compile(r"//[^/@\s]+@")


def report_to_mlflow(run_dir: Path) -> str:
    """Report an ended run to MLflow: settings, metrics by epoch, tags and model card.

    A run that was reported before is extended. Nothing is raised: a server that does not answer
    does not affect the run.

    Returns:
        A warning in one line. Empty if the run was reported or no server is named.
    """
    if not os.environ.get(URI):
        return ""
    for name, value in _DEFAULT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # MLflow reads some when it is imported
    try:
        import_module("mlflow")
    except ImportError:
        return (
            f"{URI} is set, but MLflow is not installed, so nothing was reported to it: python -m "
            "pip install mlflow"
        )
    try:
        _report_run(RunStore(run_dir.parent).load_run(run_dir))
    except Exception as error:  # servers, networks and clients raise nearly anything
        lines = _CREDENTIALS.sub("//", str(error)).strip().splitlines() or [""]
        return (
            f"The run was not, or not all, reported to MLflow ({type(error).__name__}: "
            f"{lines[0][:200]}). The run itself is not affected."
        )
    return ""


def _report_run(run: Run) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    client = MlflowClient()
    mlflow_run_id, until = _find_or_create_run(client, run)
    new = [
        Metric(name, value, round(timestamp * 1000), step)
        for name, value, step, timestamp in _iter_metrics(run)
        if timestamp > until
    ]
    params = [
        Param(name, value if isinstance(value, str) else json.dumps(value))
        for name, value in get_shareable_settings(run).items()
    ]
    client.log_batch(
        mlflow_run_id,
        params=params,
        tags=[RunTag(name, value) for name, value in _make_tags(run).items()],
    )
    for start in range(0, len(new), _MAX_METRICS_PER_REQUEST):
        client.log_batch(mlflow_run_id, metrics=new[start : start + _MAX_METRICS_PER_REQUEST])
    if new:
        client.set_tag(
            mlflow_run_id,
            _REPORTED_UNTIL_TAG,
            repr(max(timestamp for *_, timestamp in _iter_metrics(run))),
        )
    client.log_text(
        mlflow_run_id, json.dumps(get_shareable_settings(run), indent=2), "settings.json"
    )
    if run.is_evaluable:
        client.log_text(mlflow_run_id, build_card(load_source(run)), CARD)
    ended = (run.history.end or {}).get("at")
    client.set_terminated(
        mlflow_run_id, _STATUS[run.status], round(ended * 1000) if ended else None
    )


def _find_or_create_run(client: Any, run: Run) -> tuple[str, float]:
    """Return the ID of the run on the server, and the time up to which it was reported.

    A run that the server does not know is created.
    """
    name = os.environ.get(_EXPERIMENT) or "Thaw"
    experiment = client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else client.create_experiment(name)
    quote = '"' if "'" in run.run_id else "'"
    for earlier in client.search_runs(
        [number], f"tags.`{_RUN_ID_TAG}` = {quote}{run.run_id}{quote}", max_results=1
    ):
        return earlier.info.run_id, float(earlier.data.tags.get(_REPORTED_UNTIL_TAG, 0))
    started_at = (run.history.started or {}).get("at")
    created = client.create_run(
        number,
        round(started_at * 1000) if started_at else None,
        {_RUN_ID_TAG: run.run_id},
        run.name or run.run_id,
    )
    return created.info.run_id, 0.0


def _iter_metrics(run: Run) -> Iterator[Scalar]:
    """Yield loss, scores and stage measurements by epoch, then the final evaluation."""
    for split in ("train", "val"):
        for tag, value, epoch, timestamp in iter_epoch_scalars(run.history, split):
            yield f"{split}_{tag.removeprefix('epoch/')}", value, epoch, timestamp
    for row in run.history.epochs:
        for stage, values in (row.get("stages") or {}).items():
            for name, value in values.items():
                yield f"{name}/{stage}", value, row["epoch"], row["at"]
    row, end = summarize_run(run), run.history.end
    names = {"test_accuracy": "test_accuracy", "seconds": "seconds"}
    if end and end.get("evaluation_precision"):  # otherwise the values are those of an epoch
        names |= {"val_accuracy": "final_val_accuracy", "val_loss": "final_val_loss"}
    for name, metric in names.items():
        if end and row[name] is not None:
            yield metric, row[name], row["best_epoch"] or 0, end["at"]


def _make_tags(run: Run) -> dict[str, str]:
    row = summarize_run(run)
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
