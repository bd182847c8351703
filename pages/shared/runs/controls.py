"""A run's status and its buttons: pause, stop, resume, and its place in the queue.

Between a person's mouse button going down and up the page may be redrawn. Streamlit keeps what an earlier drawing showed until the
new one is complete; a button that moves meanwhile gets no click at all. So these come first in their row and are always as wide:
nothing that appears, grows or vanishes beside them moves them, and messages stand below.
"""

from collections.abc import Callable
from typing import Literal

import streamlit as st

from finetune_core.errors import FinetuneError
from finetune_core.formatting import things
from finetune_core.runs.log import arithmetic
from finetune_core.runs.stop_request import requested_stop
from finetune_core.runs.store import Run
from pages.shared.account import may_change
from pages.shared.chrome import plain
from pages.shared.runs.backend import (
    devices_again,
    devices_before,
    is_behind,
    status_words,
    worker,
)

_WIDTH = 130  # pixels; the longest label fits


def controls(run: Run) -> None:
    """The row of buttons and status, and what went wrong with the last click."""
    mine, started = may_change(run), run.history.started
    with st.container(horizontal=True, vertical_alignment="center"):
        if mine and run.active:
            _stop_buttons(run)
        elif mine and run.resumable:
            _resume_button(run)
        word, color, icon = status_words(run)
        st.badge(word, color=color, icon=icon)
        if mine and run.active:
            _place(run)
        if where := run.history.where:
            known = [where, *([arithmetic(started)] if started else []), run.run_id]
            st.caption(plain(" · ".join(known)), width="stretch")
        if not mine:
            st.caption(
                plain(f"started by {run.owner}" if run.owner else "started without signing in")
            )
    show_problem()


_RESUME = "Continues from the last checkpoint, with the same result as an uninterrupted run."
_PAUSE = "Frees the device; resume at any time."
_ICONS = {"pause": ":material/pause:", "stop": ":material/stop:", "resume": ":material/resume:"}


def _resume_button(run: Run) -> None:
    before, devices = devices_before(run), devices_again(run)
    where = (
        f" On {things(devices, 'device')}, {'as before' if devices == before else f'before on {before}'}."
        if before > 1
        else ""
    )
    _button(
        "Resume",
        "resume",
        "primary",
        lambda: worker().resume(run.run_id, devices),
        help=_RESUME + where,
    )


def _stop_buttons(run: Run) -> None:
    """Both at all times while a run is active, wherever it is: in the queue, waiting for its turn, being prepared, training."""
    asked, run_id = requested_stop(run.run_dir), run.run_id
    _button(
        "Pausing…" if asked == "pause" else "Pause",
        "pause",
        "secondary",
        lambda: worker().stop(run_id, pause=True),
        help=_PAUSE,
        disabled=bool(asked),
    )
    # A pause that was asked for can still be made a stop: that click may be on its way already.
    _button(
        "Stopping…" if asked == "stop" else "Stop",
        "stop",
        "secondary",
        lambda: worker().stop(run_id),
        disabled=asked == "stop",
    )


def _button(
    label: str,
    key: str,
    kind: Literal["primary", "secondary"],
    act: Callable[[], object],
    help: str | None = None,
    disabled: bool = False,
) -> None:
    st.button(
        label,
        key=key,
        type=kind,
        icon=_ICONS[key],
        width=_WIDTH,
        on_click=attempt,
        args=(act,),
        help=help,
        disabled=disabled,
    )


def _place(run: Run) -> None:
    """Where a run that waits in this process's queue stands, and a way to let it go earlier."""
    place = worker().waiting(run.run_id)
    if place is None or not is_behind(run):
        return
    st.caption(f"place {place[0]} of {place[1]}")
    if place[0] > 1:
        st.button(
            "Earlier",
            icon=":material/arrow_upward:",
            key="earlier",
            on_click=worker().move,
            args=(run.run_id, -1),
        )


def attempt(act: Callable[[], object]) -> None:
    """Do something; what is wrong with it is said by the page that is drawn next."""
    try:
        act()
    except FinetuneError as error:
        st.session_state["problem"] = str(error)


def show_problem() -> None:
    """What was wrong with the last click."""
    if problem := st.session_state.pop("problem", None):
        st.error(plain(problem), icon=":material/error:")
