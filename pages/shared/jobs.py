"""Long work that a page asks for: it goes on whatever is pressed meanwhile, on whatever page, and ends early by its *Stop* only."""

import time
from collections.abc import Callable
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from finetune_core.errors import DataError, FinetuneError
from finetune_core.formatting import PHASE_WORDS, time_left
from finetune_core.jobs import Job, Jobs
from finetune_core.work import Work
from pages.shared.chrome import plain

REFRESH = 0.5  # seconds
_STEP = 0.2  # seconds
_MOST_KEPT = 8  # that have ended


@st.cache_resource(show_spinner=False)
def jobs() -> Jobs:
    """All that is going on in the process."""
    return Jobs()


def begin(key: str, text: str, make: Callable[[], Work[Any]], *, kept: bool = True) -> None:
    """Start work unless it is going on already, for this session or another (a callback).

    Args:
        key: ``kind:what``: says what is computed; equal keys are the same work.
        make: makes the work; it is called and finished in another thread, where nothing of Streamlit can be used.
        kept: whether what was done until it is stopped is of use.
    """
    watched = _watched()
    for old in [other for other, job in watched.items() if not job.working][:-_MOST_KEPT]:
        del watched[old]
    watched[key] = jobs().start(key, text, make, kept=kept)


def outcome(key: str) -> Any:
    """What became of the work of that key that this session has begun or watched: its result; None before it has ended, or where
    it was stopped. While it, or earlier work of the same kind, goes on, bars are drawn; the page is drawn again when it ends.

    Raises:
        Whatever the work raised, until it is begun again.
    """
    watched, kind = _watched(), key.partition(":")[0]
    if job := jobs().find(key):
        watched[key] = job
    with st.container():
        for other, job in watched.items():
            if job.working and other.partition(":")[0] == kind:
                st.fragment(_watch, run_every=REFRESH)(other, job)
    job = watched.get(key)
    return None if job is None or job.working else _result(job)


def shown_outcome(key: str) -> Any:
    """``outcome``; what went wrong is drawn in words, and the result is None."""
    try:
        return outcome(key)
    except FinetuneError as error:
        st.error(plain(str(error)), icon=":material/error:")
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
    """A button that begins work, how far it is, and what became of it: as ``shown_outcome``.

    Args:
        label, button: of the button: as for ``st.button``, with a ``key`` of its own as ``button_key``.
        key, text, make, kept: as for ``begin``.
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
    return shown_outcome(key)


def wait_for(key: str, text: str, make: Callable[[], Work[Any]], *, kept: bool = True) -> Any:
    """The result of work without which the page cannot be drawn; its bar is drawn meanwhile. None where this session saw it stopped:
    it does not begin again before ``forget``.

    Raises:
        Whatever the work raised.
    """
    job = _watched().get(key)
    if job is None or not (job.working or job.stopping):
        begin(key, text, make, kept=kept)
        job = _watched()[key]
    place = st.empty()
    with place:
        bar = _bar(key, job)
    while not job.wait(_STEP):
        bar.progress(*_progress(job))
    place.empty()
    if not job.stopping:
        forget(key)
    return _result(job)


def wait_for_whole(key: str, text: str, make: Callable[[], Work[Any]]) -> Any:
    """Wait for work that keeps nothing when it is stopped: then a button begins it again.

    Raises:
        DataError: when it was stopped. Whatever the work raised.
    """
    result = wait_for(key, text, make, kept=False)
    if result is None:
        st.button(
            "Try again", icon=":material/replay:", key=f"again-{key}", on_click=forget, args=(key,)
        )
        raise DataError(f"{text} was stopped; nothing of it was kept.")
    return result


def forget(key: str) -> None:
    """What became of that work is of no use any more (may be a callback)."""
    _watched().pop(key, None)


def _watched() -> dict[str, Job]:
    """What this session has begun or seen going on, by key."""
    watched: dict[str, Job] = st.session_state.setdefault("jobs", {})
    return watched


def _result(job: Job) -> Any:
    if job.error:
        raise job.error.with_traceback(None)
    return job.result


def _watch(key: str, job: Job) -> None:
    if not job.working:
        st.rerun()
    _bar(key, job)


def _bar(key: str, job: Job) -> DeltaGenerator:
    """Draw how far a job is, with its Stop; returns the bar."""
    with st.container(horizontal=True, vertical_alignment="center"):
        bar = st.progress(*_progress(job))
        note = "What was done so far is kept." if job.kept else "Nothing of it is kept."
        words = "Stopping…" if job.stopping else "Stop"
        st.button(
            words,
            icon=":material/stop:",
            key=f"stop-{key}",
            help=note,
            on_click=job.stop,
            disabled=job.stopping,
        )
    return bar


def _progress(job: Job) -> tuple[float, str]:
    done, total, phase, subject = job.progress
    total = total or 0
    text = f"{subject}: " * bool(subject) + PHASE_WORDS.get(phase, job.text)
    spent = time.monotonic() - job.since
    left = f", {time_left(spent / done * (total - done))}" if done and spent > 2 else ""
    return min(
        1.0, done / max(1, total)
    ), f"{text}: {done:,} of {total:,}{left}" if total > 1 else f"{text} …"
