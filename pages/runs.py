"""Runs: a table of all runs to search, compare, repeat and delete, and the queue."""

import streamlit as st

from finetune_core.evaluation.reference_points import reference_points
from finetune_core.evaluation.run_accuracy import run_accuracy
from finetune_core.formatting import format_number, format_percent, pluralize
from finetune_core.runs.store import Run
from pages.shared.account import can_change
from pages.shared.chrome import draw_next_step, escape_markdown, go, start_page
from pages.shared.runs.again import describe_differences, use_again
from pages.shared.runs.backend import store
from pages.shared.runs.controls import show_problem
from pages.shared.runs.damaged import draw_damaged_runs
from pages.shared.runs.first_run import draw_empty_page
from pages.shared.runs.labels import run_title
from pages.shared.runs.machines import draw_machines
from pages.shared.runs.queue_list import draw_queue_list
from pages.shared.runs.run_settings import draw_lineage
from pages.shared.runs.table import draw_search_box, draw_table, find_matching, get_selected
from pages.shared.runs.trash import TRASH, move_to_trash

REFRESH = 3.0  # seconds
MOST_NAMED = 10

start_page(
    "pages/runs.py",
    "Every run on this machine: find, compare, or train again with the same settings.",
)


def draw_actions(chosen: list[Run], num_runs: int) -> None:
    """Draw the buttons for the selected runs.

    All buttons are there at all times, so that none of them moves.

    Args:
        chosen: the selected runs.
        num_runs: number of runs in the table.
    """
    judged = [run.run_id for run in chosen if run.is_evaluable]
    one = chosen[0] if len(chosen) == 1 else None
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button(
            "Compare",
            type="primary",
            icon=":material/compare_arrows:",
            disabled=len(judged) < 2 or len(judged) < len(chosen),
            help="Select two runs or more that have ended an epoch.",
        ):
            go("pages/compare.py", runs=judged)
        if (
            st.button(
                "Open", icon=":material/open_in_new:", disabled=one is None, help="Select one run."
            )
            and one
        ):
            go("pages/evaluate.py" if one.is_evaluable else "pages/train.py", one.run_id)
        if (
            st.button(
                "Use these settings again",
                icon=":material/replay:",
                disabled=one is None,
                help="Select one run: its settings and its data set go to Configure.",
            )
            and one
        ):
            use_again(one)
        draw_delete(chosen)
        st.caption(f"{format_number(len(chosen))} of {pluralize(num_runs, 'run')} selected")
    if one:
        draw_lineage(one)
        if text := describe_accuracy(one):
            st.caption(escape_markdown(text))
    if one and (text := describe_differences(one)):
        st.caption(escape_markdown(text))


def describe_accuracy(run: Run) -> str:
    """Return the run's accuracy with its reference points; empty before the first epoch."""
    accuracy = run_accuracy(run)
    if not accuracy:
        return ""
    sentence = reference_points(run, store().list_runs(), accuracy.split).to_sentence()
    return f"{accuracy.name} {format_percent(accuracy.value)}. {sentence}".strip()


def draw_delete(chosen: list[Run]) -> None:
    """Draw the button Delete, which asks first with the number of runs and their titles."""
    deletable = [run for run in chosen if can_change(run) and not run.is_active]
    # A new key after each deletion closes the popover.
    num_deletions = st.session_state.get("deletions", 0)
    with st.popover(
        "Delete", icon=":material/delete:", disabled=not chosen, key=f"delete-{num_deletions}"
    ):
        num_kept = len(chosen) - len(deletable)
        st.markdown(f"**Move {pluralize(len(deletable), 'run')} to the trash?**")
        titles = [f"- {escape_markdown(run_title(run))}" for run in deletable[:MOST_NAMED]]
        st.markdown(
            "\n".join(
                titles
                + (
                    [f"- and {len(deletable) - MOST_NAMED} more"]
                    if len(deletable) > MOST_NAMED
                    else []
                )
            )
        )
        if num_kept:
            st.markdown(
                f"{pluralize(num_kept, 'selected run')} stay: still active, or somebody else's."
            )
        st.caption(TRASH)
        st.button(
            f"Move {pluralize(len(deletable), 'run')} to the trash",
            key="confirm-delete",
            icon=":material/delete:",
            disabled=not deletable,
            on_click=delete_confirmed,
            args=([run.run_id for run in deletable],),
        )


def delete_confirmed(run_ids: list[str]) -> None:
    """Delete runs after the confirmation (a callback)."""
    move_to_trash(run_ids)
    st.session_state["deletions"] = st.session_state.get("deletions", 0) + 1


def draw_panel(was_active: bool) -> None:
    """Draw the search, the table and the queue, refreshed while runs are active."""
    runs = store().list_runs()
    # The fragment has to start or stop refreshing itself.
    if not runs or was_active != any(run.is_active for run in runs):
        st.rerun()
    text = draw_search_box()
    found = find_matching(runs, text)
    draw_actions(get_selected(found), len(found))
    if found:
        draw_table(found)
    else:
        st.info(escape_markdown(f"No run matches “{text}”."), icon=":material/search_off:")
    show_problem()
    draw_machines(runs)
    draw_queue_list(runs)


runs, damaged = store().list_all()
if not runs:
    draw_empty_page("No run yet. Configure one, or see it work on the sample first.")
    draw_damaged_runs(damaged)
    draw_next_step("pages/configure.py", "Configure a run", primary=False)
    st.stop()
active = any(run.is_active for run in runs)
st.fragment(draw_panel, run_every=REFRESH if active else None)(active)
draw_damaged_runs(damaged)
draw_next_step("pages/configure.py", "Configure another run", primary=False)
