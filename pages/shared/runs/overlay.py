"""Other runs' curves over those of the run that is looked at; which ones stands in the page's address, as ``with``."""

import streamlit as st

from finetune_core.evaluation.comparison.arms import run_titles
from finetune_core.figures.curves import MOST_OVERLAID, overlaid_curves
from finetune_core.runs.store import Run
from pages.shared.runs.backend import store
from pages.shared.runs.labels import meant, run_labels


def overlaid(run: Run) -> list[Run]:
    """The box that chooses them; the runs that are chosen."""
    others = {one.run_id: one for one in store().runs() if one.run_id != run.run_id and one.history.epochs}
    labels = run_labels(others.values())
    st.session_state["overlay_box"] = [run_id for run_id in st.query_params.get_all("with") if run_id in others][
        : MOST_OVERLAID - 1
    ]
    chosen = st.multiselect(
        "Overlay other runs",
        list(labels),
        format_func=lambda run_id: labels.get(run_id, run_id),
        max_selections=MOST_OVERLAID - 1,
        key="overlay_box",
        on_change=_to_address,
        placeholder="Overlay the curves of other runs",
        label_visibility="collapsed",
        disabled=not others,
    )
    return [others[run_id] for run_id in chosen]


def overlaid_charts(runs: list[Run]) -> None:
    """Loss and accuracy of each run by epoch, side by side."""
    titles = run_titles(runs)
    lines = [(title, run.history.epochs) for title, run in zip(titles, runs, strict=True)]
    for column, kind in zip(st.columns(2), ("loss", "accuracy"), strict=True):
        with column:
            st.altair_chart(
                overlaid_curves(kind, lines), alt=f"{kind} by epoch of {', '.join(titles)}, for training and validation images"
            )


def _to_address() -> None:
    st.query_params["with"] = meant(st.session_state["overlay_box"])
