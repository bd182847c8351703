"""Train: watch a run live, stop it, and find it again. All of it is read from the run directory."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import streamlit as st

from finetune_core.data.camera import is_recording
from finetune_core.data.edits import describe_edit, describe_edits, name_image
from finetune_core.errors import FinetuneError, RunError
from finetune_core.evaluation.reference_points import reference_points
from finetune_core.evaluation.single_run.evaluate import evaluation, is_held_out
from finetune_core.formatting import (
    accuracy_name,
    format_duration,
    format_interval,
    format_number,
    format_percent,
    pluralize,
)
from finetune_core.runs.about import MOST_TAGS
from finetune_core.runs.store import Run, summarize_run
from finetune_core.training.strategies.catalogue import STRATEGIES, count_epochs
from pages.shared.account import can_change
from pages.shared.chrome import draw_next_step, escape_markdown, start_page
from pages.shared.configure.stages import add_unused_stages, draw_passing, draw_stages
from pages.shared.evaluation.live import offer_live_camera
from pages.shared.runs.averaged import draw_average
from pages.shared.runs.backend import store
from pages.shared.runs.controls import attempt, draw_controls
from pages.shared.runs.damaged import draw_damaged_runs
from pages.shared.runs.first_run import draw_empty_page
from pages.shared.runs.labels import run_title
from pages.shared.runs.live import (
    draw_curves,
    draw_details,
    draw_fit,
    draw_notices,
    draw_numbers,
    draw_progress,
    refresh_seconds,
)
from pages.shared.runs.overlay import choose_overlaid, draw_overlaid
from pages.shared.runs.picker import choose_run
from pages.shared.runs.run_settings import draw_lineage, draw_run_settings
from pages.shared.runs.trash import TRASH, move_to_trash

MOST_NAMED = 50  # changes to the data set, and images of one change
LOOK_AGAIN = 10.0  # seconds between checks whether another process has resumed the run

start_page(
    "pages/train.py",
    "Watch a run. You can close the tab: the run continues, and this page finds it again.",
)


def draw_about(run: Run) -> None:
    """Draw a run's tags and note, and the form that edits name, note and tags or deletes it."""
    if run.tags:
        st.markdown(" ".join(f":gray-badge[{escape_markdown(tag)}]" for tag in run.tags))
    if run.note:
        st.markdown(escape_markdown(run.note))
    if not can_change(run):
        return
    with st.expander("Name, note, tags, delete", icon=":material/edit:"):
        with st.form(f"about-{run.run_id}", border=False):
            name = st.text_input("Name", run.name, max_chars=80)
            note = st.text_area("Note", run.note, max_chars=2000, help="What you tried, and why.")
            known_tags = dict.fromkeys([*run.tags, *(tag for other in runs for tag in other.tags)])
            tags = st.multiselect(
                "Tags",
                known_tags,
                run.tags,
                max_selections=MOST_TAGS,
                accept_new_options=True,
                placeholder="Choose or type tags",
            )
            if st.form_submit_button("Save"):
                attempt(lambda: store().set_about(run.run_id, name, note, tags))
                st.rerun()
        if st.button("Delete this run", icon=":material/delete:", disabled=run.is_active):
            confirm_delete(run)


@st.dialog("Delete this run?")
def confirm_delete(run: Run) -> None:
    """Ask before a run is moved to the trash."""
    st.markdown(f"**Move {escape_markdown(run_title(run))} to the trash?**")
    st.caption(TRASH)
    if st.button("Move to the trash", type="primary"):
        move_to_trash([run.run_id])
        st.query_params.clear()
        st.rerun()


def draw_data_changes(run: Run) -> None:
    """Draw the changes to the data set that a run was trained with."""
    changes = describe_edits(run.config.edits)
    if not changes:
        return
    with st.expander(
        f"Trained with changes to the data set: {changes}", icon=":material/edit_note:"
    ):
        for edit in run.config.edits[:MOST_NAMED]:
            st.markdown(
                f"**{escape_markdown(describe_edit(edit))}**: "
                f"{escape_markdown(', '.join(map(name_image, edit.paths[:MOST_NAMED])))}"
                + (" …" if len(edit.paths) > MOST_NAMED else "")
            )
        if len(run.config.edits) > MOST_NAMED:
            st.caption(f"And {pluralize(len(run.config.edits) - MOST_NAMED, 'change')} more.")


def draw_result(run: Run) -> None:
    """Draw how a run ended, its result, and the next step."""
    end = run.history.end
    if run.status == "failed" and end:
        st.error(escape_markdown(end["message"]), icon=":material/error:")
        if end["traceback"]:
            with st.expander("Details for a bug report"):
                st.code(end["traceback"], language=None)
    elif run.status == "interrupted":
        st.warning(
            "The program ended while this run was going on. *Resume* goes on from its last "
            "checkpoint.",
            icon=":material/power_off:",
        )
    if not run.is_evaluable:
        if run.status == "cancelled":
            st.info(
                "It was cancelled before it began. *Resume* queues it again.",
                icon=":material/info:",
            )
        if run.status in ("stopped", "paused", "interrupted"):
            state = (
                "Nothing was averaged yet"
                if run.config.averaged
                else "The classifier was not fitted yet"
            )
            words = "No epoch had ended" if count_epochs(run.config) else state
            st.info(f"{words}, so there is nothing to evaluate.", icon=":material/info:")
        draw_next_step("pages/configure.py", "Configure another run", primary=not run.is_resumable)
        return
    try:
        result = evaluation(run)
    except FinetuneError as error:
        st.error(escape_markdown(str(error)))
        return
    held_out = "held-out " if is_held_out(run, result.split) else ""
    lines = [
        f"**{accuracy_name(result.split)} {format_percent(result.accuracy)}** "
        f"(95 % interval {format_interval(result.low, result.high)}) on "
        f"{pluralize(result.images, f'{held_out}image')}.",
        reference_points(run, runs, result.split).to_sentence(),
        f"Converged: {run.convergence.reason}." if run.convergence.converged else "",
    ]
    st.info(" ".join(escape_after_first(lines)), icon=":material/flag:")
    st.caption(" ".join(describe_kept_weights(run)))
    draw_next_step(
        "pages/evaluate.py", "See the evaluation", primary=not run.is_resumable, run=run.run_id
    )
    if is_recording(run.config.data):
        offer_live_camera(run)


def escape_after_first(lines: Sequence[str]) -> list[str]:
    """Escape all but the first line, whose Markdown is Thaw's own; leave out empty lines."""
    return [line if line == lines[0] else escape_markdown(line) for line in lines if line]


def describe_kept_weights(run: Run) -> list[str]:
    """Return sentences on a run: which weights are kept, its duration, and the frozen weights."""
    end = run.history.end or {}
    sentence = "Its head was fitted without epochs."
    if run.config.averaged:
        sentence = (
            "Its networks answer together."
            if run.config.is_ensemble
            else "Its weights are averaged."
        )
    if best := summarize_run(run)["best_epoch"]:
        sentence = f"Epoch {best} was the best and is kept."
    lines = [sentence]
    if seconds := end.get("seconds"):
        lines.append(
            f"The run {'has run for' if run.is_resumable else 'took'} {format_duration(seconds)}."
        )
    if tensors := end.get("frozen_tensors"):
        lines.append(
            "Checked: the frozen stages are bit for bit what they were before "
            f"({format_number(tensors)} tensors compared)."
        )
    return lines


def draw_panel(run_id: str, status: str, seconds: float | None, others: list[Run]) -> None:
    """Draw the panel that refreshes itself.

    Args:
        run_id: id of the run.
        status: status of the run when the page around the panel was drawn.
        seconds: seconds between two refreshes now.
        others: runs whose curves are drawn over this run's. They are chosen outside of the panel,
            because each refresh would redraw the box.
    """
    try:
        run = store().get_run(run_id)
    except RunError as error:
        # The run was deleted or damaged since the page was drawn.
        st.error(escape_markdown(str(error)), icon=":material/folder_off:")
        return
    # The page around this panel names the status, too, and only it can change the pace.
    if (status, seconds) != (run.status, refresh_seconds(run)):
        st.rerun()
    with st.container():
        # One container, whatever appears in it: otherwise everything below would be redrawn, and
        # charts would flicker.
        draw_controls(run)
        draw_lineage(run)
        draw_notices(run)
        if run.is_active:
            draw_progress(run)
        else:
            draw_result(run)
        if run.is_active:
            draw_numbers(run)
        draw_fit(run)
        draw_average(run)
    if others and run.history.epochs:
        draw_overlaid([run, *others])
    else:
        draw_curves(run)
    draw_run_stages(run)
    draw_details(run)


def draw_run_stages(run: Run) -> None:
    """Draw the stages; while the frozen ones are computed, mark those that images go through."""
    if run.config.is_ensemble:
        # Each network of an ensemble has its own stages.
        return
    progress = run.history.progress
    if run.is_active and progress and progress["phase"] == "trunk":
        with suppress(FinetuneError):
            # The backbone may not be known any more.
            draw_passing(run.config, progress["stage"])
    elif run.history.started:
        rate = None if run.config.averaged else run.config.learning_rate
        draw_stages(list_run_stages(run), rate, fits=STRATEGIES[run.config.strategy].fits)


def list_run_stages(run: Run) -> Sequence[Mapping[str, Any]]:
    """Return a run's stages, and the unused stages of its backbone if that is still known."""
    stages: Sequence[Mapping[str, Any]] = run.started["stages"]
    with suppress(FinetuneError):
        stages = add_unused_stages(stages, run.config)
    return stages


def redraw_on_change(run_id: str, status: str) -> None:
    """Redraw the page once a run's status has changed.

    This fragment draws nothing itself, so that a page left open costs next to nothing.
    """
    try:
        changed = store().get_run(run_id).status != status
    except RunError:
        # Another session has deleted the run.
        changed = True
    if changed:
        st.rerun()


runs, damaged = store().list_all()
if not runs:
    draw_empty_page("No run yet. Configure one, or see it work on the sample first.")
    draw_damaged_runs(damaged)
    draw_next_step("pages/configure.py", "Configure a run", primary=False)
    st.stop()
chosen = choose_run(runs, damaged, prefer_active=True)
others = choose_overlaid(chosen, runs)
paced = refresh_seconds(chosen)
st.fragment(draw_panel, run_every=paced)(chosen.run_id, chosen.status, paced, others)
if chosen.is_resumable:
    st.fragment(redraw_on_change, run_every=LOOK_AGAIN)(chosen.run_id, chosen.status)
draw_about(chosen)
draw_data_changes(chosen)
draw_run_settings(chosen)
draw_damaged_runs(damaged)
