"""Long work in the background of the pages.

Work goes on whatever is pressed meanwhile and whatever page is open. Only its *Stop* ends it early.
"""

import time
from collections.abc import Callable
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from finetune_core.errors import DataError, FinetuneError
from finetune_core.formatting import PHASE_TITLES, format_time_left
from finetune_core.jobs import Job, Jobs
from finetune_core.work import Work
from pages.shared.chrome import escape_markdown

REFRESH = 0.5  # seconds
_STEP = 0.2  # seconds
_MOST_KEPT = 8  # ended jobs


@st.cache_resource(show_spinner=False)
def jobs() -> Jobs:
    """Return the jobs of this process."""
    return Jobs()


def begin(key: str, text: str, make: Callable[[], Work[Any]], *, kept: bool = True) -> None:
    """Start work, unless this session or another one has already started it (a callback).

    Args:
        key: ``kind:what``: says what is computed. Equal keys are the same work.
        text: text of the progress bar.
        make: makes the work. It is called and finished in another thread, which cannot use
            Streamlit.
        kept: whether partial results remain useful after a stop.
    """
    watched = _watched_jobs()
    for old in [other for other, job in watched.items() if not job.is_running][:-_MOST_KEPT]:
        del watched[old]
    watched[key] = jobs().start(key, text, make, kept=kept)


def take_outcome(key: str) -> Any:
    """Return the result of work that this session has started or watched.

    While this work, or earlier work of the same kind, goes on, its progress bar is drawn. The page
    is redrawn when the work ends.

    Args:
        key: key of the work.

    Returns:
        The result; None before the end, or if the work was stopped.

    Raises:
        Exception: any exception that the work raised, until the work is started again.
    """
    watched, kind = _watched_jobs(), key.partition(":")[0]
    if job := jobs().find(key):
        watched[key] = job
    with st.container():
        for other, job in watched.items():
            if job.is_running and other.partition(":")[0] == kind:
                st.fragment(_watch_job, run_every=REFRESH)(other, job)
    job = watched.get(key)
    return None if job is None or job.is_running else _get_result(job)


def show_outcome(key: str) -> Any:
    """Return ``take_outcome``, but show a ``FinetuneError`` on the page and return None instead."""
    try:
        return take_outcome(key)
    except FinetuneError as error:
        st.error(escape_markdown(str(error)), icon=":material/error:")
        return None


def offer(
    label: str,
    key: str,
    text: str,
    make: Callable[[], Work[Any]],
    *,
    kept: bool = True,
    **button: Any,
) -> Any:
    """Draw a button that starts work, then its progress, then return its result.

    Args:
        label: label of the button.
        key: key of the work, as in ``begin``.
        text: text of the progress bar, as in ``begin``.
        make: makes the work, as in ``begin``.
        kept: as in ``begin``.
        button: further arguments of ``st.button``. ``button_key`` is the key of the button.

    Returns:
        The result, as from ``show_outcome``.
    """
    button["disabled"] = bool(button.get("disabled")) or jobs().find(key) is not None
    st.button(
        label,
        key=button.pop("button_key"),
        on_click=begin,
        args=(key, text, make),
        kwargs={"kept": kept},
        **button,
    )
    return show_outcome(key)


def wait_for(key: str, text: str, make: Callable[[], Work[Any]], *, kept: bool = True) -> Any:
    """Wait for work that the page cannot be drawn without, with a progress bar.

    Args:
        key: as in ``begin``.
        text: as in ``begin``.
        make: as in ``begin``.
        kept: as in ``begin``.

    Returns:
        The result; None if this session saw the work stopped. Stopped work does not start again
        before ``forget``.

    Raises:
        Exception: any exception that the work raised.
    """
    job = _watched_jobs().get(key)
    if job is None or not (job.is_running or job.is_stopping):
        begin(key, text, make, kept=kept)
        job = _watched_jobs()[key]
    place = st.empty()
    with place:
        bar = _draw_bar(key, job)
    while not job.wait(_STEP):
        bar.progress(*_describe_progress(job))
    place.empty()
    if not job.is_stopping:
        forget(key)
    return _get_result(job)


def wait_for_whole(key: str, text: str, make: Callable[[], Work[Any]]) -> Any:
    """Wait for work that keeps nothing when stopped; after a stop, a button starts it again.

    Raises:
        DataError: if the work was stopped.
        Exception: any exception that the work raised.
    """
    result = wait_for(key, text, make, kept=False)
    if result is None:
        st.button(
            "Try again", icon=":material/replay:", key=f"again-{key}", on_click=forget, args=(key,)
        )
        raise DataError(f"{text} was stopped; nothing of it was kept.")
    return result


def forget(key: str) -> None:
    """Drop the result of some work, so that the work can start again (may be a callback)."""
    _watched_jobs().pop(key, None)


def _watched_jobs() -> dict[str, Job]:
    """Return the jobs that this session has started or watched, by key."""
    watched: dict[str, Job] = st.session_state.setdefault("jobs", {})
    return watched


def _get_result(job: Job) -> Any:
    if job.error:
        raise job.error.with_traceback(None)
    return job.result


def _watch_job(key: str, job: Job) -> None:
    if not job.is_running:
        st.rerun()
    _draw_bar(key, job)


def _draw_bar(key: str, job: Job) -> DeltaGenerator:
    """Draw the progress bar of a job with its Stop button; return the bar."""
    with st.container(horizontal=True, vertical_alignment="center"):
        bar = st.progress(*_describe_progress(job))
        note = "What was done so far is kept." if job.kept else "Nothing of it is kept."
        text = "Stopping…" if job.is_stopping else "Stop"
        st.button(
            text,
            icon=":material/stop:",
            key=f"stop-{key}",
            help=note,
            on_click=job.stop,
            disabled=job.is_stopping,
        )
    return bar


def _describe_progress(job: Job) -> tuple[float, str]:
    done, total, phase, subject = job.progress
    total = total or 0
    text = f"{subject}: " * bool(subject) + PHASE_TITLES.get(phase, job.text)
    spent = time.monotonic() - job.since
    time_text = f", {format_time_left(spent / done * (total - done))}" if done and spent > 2 else ""
    return min(
        1.0, done / max(1, total)
    ), f"{text}: {done:,} of {total:,}{time_text}" if total > 1 else f"{text} …"
