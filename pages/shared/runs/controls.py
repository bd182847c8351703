"""Status of a run and its buttons: pause, stop, resume, and its position in the queue.

The page may be redrawn between the press and the release of a mouse button. Streamlit keeps the
earlier drawing until the new one is complete, and a button that moves meanwhile gets no click at
all. So the buttons come first in their row and have a fixed width. Nothing that appears, grows or
vanishes beside the buttons moves them, and messages stand below.
"""

from collections.abc import Callable
from typing import Literal

import streamlit as st

from finetune_core.errors import FinetuneError
from finetune_core.formatting import pluralize
from finetune_core.runs.log import describe_precision
from finetune_core.runs.stop_request import read_stop_request
from finetune_core.runs.store import Run
from pages.shared.account import can_change
from pages.shared.chrome import escape_markdown
from pages.shared.runs.backend import (
    count_previous_devices,
    count_resume_devices,
    describe_status,
    is_behind,
    worker,
)

_WIDTH = 130  # pixels; the longest label fits


def draw_controls(run: Run) -> None:
    """Draw the row of buttons and status, and the error of the last click."""
    is_own, started = can_change(run), run.history.started
    with st.container(horizontal=True, vertical_alignment="center"):
        if is_own and run.is_active:
            _draw_stop_buttons(run)
        elif is_own and run.is_resumable:
            _draw_resume_button(run)
        word, color, icon = describe_status(run)
        st.badge(word, color=color, icon=icon)
        if is_own and run.is_active:
            _draw_position(run)
        if where := run.history.where:
            facts = [where, *([describe_precision(started)] if started else []), run.run_id]
            st.caption(escape_markdown(" · ".join(facts)), width="stretch")
        if not is_own:
            st.caption(
                escape_markdown(
                    f"started by {run.owner}" if run.owner else "started without signing in"
                )
            )
    show_problem()


_RESUME = "Continues from the last checkpoint, with the same result as an uninterrupted run."
_PAUSE = "Frees the device; resume at any time."
_ICONS = {"pause": ":material/pause:", "stop": ":material/stop:", "resume": ":material/resume:"}


def _draw_resume_button(run: Run) -> None:
    before, devices = count_previous_devices(run), count_resume_devices(run)
    where = (
        f" On {pluralize(devices, 'device')}, "
        f"{'as before' if devices == before else f'before on {before}'}."
        if before > 1
        else ""
    )
    _draw_button(
        "Resume",
        "resume",
        "primary",
        lambda: worker().resume(run.run_id, devices),
        help=_RESUME + where,
    )


def _draw_stop_buttons(run: Run) -> None:
    """Draw Pause and Stop.

    Both are there while a run is active in any way: queued, waiting, being prepared, or training.
    """
    requested, run_id = read_stop_request(run.run_dir), run.run_id
    _draw_button(
        "Pausing…" if requested == "pause" else "Pause",
        "pause",
        "secondary",
        lambda: worker().stop(run_id, pause=True),
        help=_PAUSE,
        disabled=bool(requested),
    )
    # A requested pause can still become a stop: that click may be on its way already.
    _draw_button(
        "Stopping…" if requested == "stop" else "Stop",
        "stop",
        "secondary",
        lambda: worker().stop(run_id),
        disabled=requested == "stop",
    )


def _draw_button(
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


def _draw_position(run: Run) -> None:
    """Draw a waiting run's position in this process's queue, and the button to move it forward."""
    position = worker().find_position(run.run_id)
    if position is None or not is_behind(run):
        return
    st.caption(f"place {position[0]} of {position[1]}")
    if position[0] > 1:
        st.button(
            "Earlier",
            icon=":material/arrow_upward:",
            key="earlier",
            on_click=worker().move_in_queue,
            args=(run.run_id, -1),
        )


def attempt(act: Callable[[], object]) -> None:
    """Run the body of a callback. The page that is drawn next shows its error."""
    try:
        act()
    except FinetuneError as error:
        st.session_state["problem"] = str(error)


def show_problem() -> None:
    """Draw the error of the last click."""
    if problem := st.session_state.pop("problem", None):
        st.error(escape_markdown(problem), icon=":material/error:")
