"""The process's one run store and one worker, shared by all sessions."""

import streamlit as st

from finetune_core import paths
from finetune_core.config import RunConfig
from finetune_core.exporters.mlflow import report_to_mlflow
from finetune_core.runs.executors.create import make_app_executor
from finetune_core.runs.store import Run, RunStore, Status
from finetune_core.runs.worker import Worker
from pages.shared.account import owner
from pages.shared.chrome import Color
from pages.shared.data.chosen import readable_roots
from pages.shared.jobs import jobs

STATUS_WORDS: dict[Status, tuple[str, Color, str]] = {
    "queued": ("Queued", "gray", ":material/hourglass_empty:"),
    "waiting": ("Waiting for the device", "gray", ":material/hourglass_empty:"),
    "running": ("Training", "orange", ":material/local_fire_department:"),
    "finished": ("Finished", "green", ":material/check_circle:"),
    "stopped": ("Stopped", "blue", ":material/stop_circle:"),
    "cancelled": ("Cancelled", "gray", ":material/cancel:"),
    "paused": ("Paused", "blue", ":material/pause_circle:"),
    "failed": ("Failed", "red", ":material/error:"),
    "interrupted": ("Interrupted", "violet", ":material/power_off:"),
}

_STARTING: tuple[str, Color, str] = ("Starting", "gray", ":material/hourglass_empty:")


def describe_status(run: Run) -> tuple[str, Color, str]:
    """Return word, colour and icon of a run's status; it is queued only behind other runs."""
    return _STARTING if run.status == "queued" and not is_behind(run) else STATUS_WORDS[run.status]


def is_behind(run: Run) -> bool:
    """Return whether other runs are ahead of a run that has not begun."""
    for ids in worker().list_queues():
        if run.run_id in ids:
            return ids[0] != run.run_id
    # Another program has the run: all that is known is whether anything trains.
    return any(one.status in ("running", "waiting") for one in store().list_runs())


@st.cache_resource(show_spinner=False)
def store() -> RunStore:
    """Return the store of all runs on disk."""
    return RunStore(paths.runs_dir())


@st.cache_resource(show_spinner=False)
def worker() -> Worker:
    """Return the process's one worker."""
    return Worker(paths.runs_dir(), readable_roots(), report_to_mlflow, make_app_executor())


def why_not_timed() -> str | None:
    """Return why nothing can be timed now; None if no page has started a job.

    Jobs that time something wait for the end of training runs by themselves.
    """
    running = jobs().list_running()
    return f"“{running[0].text}” is running: each would slow the other down." if running else None


def submit(config: RunConfig, devices: int = 1) -> str:
    """Queue a run of this session; return its id.

    Args:
        config: settings of the run.
        devices: number of devices of one machine to train on.

    Raises:
        ConfigError: if the run cannot work.
    """
    return worker().submit(config, owner(), devices)


def count_previous_devices(run: Run) -> int:
    """Return the number of devices that a run has trained on; 1 if it has not begun."""
    before: int = run.history.started["ranks"] if run.history.started else 1
    return before


def count_resume_devices(run: Run) -> int:
    """Return the number of devices that a run resumes on: as many as before, or as there are."""
    return min(count_previous_devices(run), worker().executor.max_devices())
