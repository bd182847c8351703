"""Home: a comparison to start, the latest runs and data sets, and the machine's device."""

from collections.abc import Sequence

import streamlit as st

from finetune_core.config import get_setting
from finetune_core.evaluation.reference_points import reference_points
from finetune_core.evaluation.run_accuracy import run_accuracy
from finetune_core.formatting import format_bytes, pluralize
from finetune_core.runs.store import DamagedRun, Run
from finetune_core.training.devices.device import describe_machine
from pages.shared.address import link_parameters
from pages.shared.chrome import draw_next_step, escape_markdown, go
from pages.shared.data.chosen import draw_recent, recent_data
from pages.shared.runs.backend import describe_status, store
from pages.shared.runs.damaged import draw_damaged_runs
from pages.shared.runs.first_run import draw_first_comparison
from pages.shared.runs.labels import run_title


def draw_home() -> None:
    """Draw everything below the page's title."""
    runs, damaged = store().list_all()
    with st.container(border=True):
        offers_data = draw_first_comparison(runs)
    if offers_data:
        draw_next_step("pages/dataset.py", "Choose your data", primary=False)
    _draw_recent_runs(runs, damaged)
    _draw_recent_data_sets()
    _draw_machine()


def _draw_machine() -> None:
    """Say in one line what the machine trains with."""
    machine = describe_machine()
    device = get_setting("device").choices[machine.device.kind]
    st.markdown(
        f":material/memory: {escape_markdown(device)} · {machine.device.precision} · "
        f"{format_bytes(machine.free_memory)} of {format_bytes(machine.memory)} memory free",
        help=f"{escape_markdown(machine.device.label)}; {machine.cores} CPU cores. "
        f"{machine.device.precision} is the number format of the arithmetic: bf16 takes half the "
        "memory of fp32, and is used only where the hardware has it; fp16, with a loss scale, on "
        "NVIDIA GPUs without bf16.",
    )


def _draw_recent_runs(runs: Sequence[Run], damaged: Sequence[DamagedRun]) -> None:
    """Draw the latest runs, with their accuracies beside reference points."""
    if runs:
        st.header("Latest runs", anchor=False)
    for run in runs[:5]:
        with st.container(horizontal=True, vertical_alignment="center", border=True):
            word, color, icon = describe_status(run)
            st.badge(word, color=color, icon=icon)
            st.markdown(
                escape_markdown(run_title(run)) + _describe_result(run, runs), width="stretch"
            )
            if st.button("Open", key=f"open-{run.run_id}"):
                go("pages/evaluate.py" if run.is_evaluable else "pages/train.py", run.run_id)
    if runs:
        st.page_link(
            "pages/runs.py",
            label=f"All {pluralize(len(runs), 'run')}",
            icon=":material/table_rows:",
            query_params=link_parameters(),
        )
    draw_damaged_runs(damaged)


def _describe_result(run: Run, runs: Sequence[Run]) -> str:
    """Return the run's accuracy with its reference points; empty before the first epoch."""
    if not (accuracy := run_accuracy(run)):
        return ""
    beside = reference_points(run, runs).to_text()
    return f" · **{accuracy.to_text()}**" + (
        f" :gray[· {escape_markdown(beside)}]" if beside else ""
    )


def _draw_recent_data_sets() -> None:
    sources = recent_data()
    if sources:
        st.header("Recent data sets", anchor=False)
        draw_recent(sources, lead_to="pages/dataset.py")
