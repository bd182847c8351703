"""Runs waiting in this process in their order, each with buttons that move or cancel it.

A button belongs to its run, not to its position. So a click that is on its way while the queue
moves on never means another run. The buttons come first in their row, so that nothing beside them
moves them.
"""

import streamlit as st

from finetune_core.runs.store import Run
from pages.shared.account import can_change, is_sign_in_required
from pages.shared.chrome import escape_markdown
from pages.shared.runs.backend import STATUS_WORDS, worker
from pages.shared.runs.controls import attempt
from pages.shared.runs.labels import run_title


def draw_queue_list(runs: list[Run]) -> None:
    """Draw the waiting runs; nothing if no run waits."""
    by_id = {run.run_id: run for run in runs}
    queues = [
        waiting
        for ids in worker().list_queues()
        if (waiting := [by_id[run_id] for run_id in ids if _is_waiting(by_id.get(run_id))])
    ]
    if queues:
        st.header("Queue", anchor=False)
    for waiting in queues:
        for place, run in enumerate(waiting, 1):
            _draw_line(run, place, len(waiting))


def _is_waiting(run: Run | None) -> bool:
    return run is not None and worker().find_position(run.run_id) is not None


def _draw_line(run: Run, place: int, places: int) -> None:
    can_move, run_id = can_change(run), run.run_id
    with st.container(
        horizontal=True, vertical_alignment="center", border=True, key=f"queued-{run_id}"
    ):
        for label, icon, step, is_possible in (
            ("Earlier", "arrow_upward", -1, place > 1),
            ("Later", "arrow_downward", 1, place < places),
        ):
            st.button(
                label,
                key=f"{label}-{run_id}",
                icon=f":material/{icon}:",
                disabled=not (can_move and is_possible),
                on_click=worker().move_in_queue,
                args=(run_id, step),
            )
        st.button(
            "Cancel",
            key=f"cancel-{run_id}",
            icon=STATUS_WORDS["cancelled"][2],
            disabled=not can_move,
            on_click=attempt,
            args=(lambda: worker().cancel(run_id),),
        )
        owner_text = (
            f" · {escape_markdown(run.owner)}" if run.owner and is_sign_in_required() else ""
        )
        st.markdown(
            f"**{place}** · {escape_markdown(run_title(run))} · seed {run.config.seed}{owner_text}",
            width="stretch",
        )
