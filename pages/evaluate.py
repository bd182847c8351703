"""Evaluate: how good a run is on images outside its training set, and where it is wrong."""

from functools import partial

import streamlit as st

from finetune_core.errors import FinetuneError
from finetune_core.evaluation.reference_points import reference_points
from finetune_core.evaluation.single_run.evaluate import (
    HELD_OUT,
    evaluation,
    is_held_out,
    list_predicted_splits,
    precision_note,
)
from finetune_core.evaluation.single_run.fp32 import can_evaluate_in_fp32, evaluate_in_fp32
from finetune_core.evaluation.single_run.metrics import Evaluation
from finetune_core.formatting import SPLIT_TITLES, accuracy_name, format_percent, pluralize
from finetune_core.runs.store import Run
from pages.shared.chrome import draw_next_step, escape_markdown, start_page
from pages.shared.data.chosen import readable_roots
from pages.shared.evaluation.confusion import draw_confusions
from pages.shared.evaluation.export import draw_export_buttons
from pages.shared.evaluation.numbers import draw_share, draw_value
from pages.shared.evaluation.reliability import draw_reliability
from pages.shared.evaluation.tabs import draw_metrics
from pages.shared.jobs import offer
from pages.shared.runs.backend import store
from pages.shared.runs.damaged import draw_damaged_runs
from pages.shared.runs.first_run import draw_empty_page
from pages.shared.runs.live import warn_undertrained
from pages.shared.runs.picker import choose_run
from pages.shared.runs.run_settings import draw_lineage

REFERENCES = {
    "Majority class": "Always predicting the most frequent class of the training images.",
    "Linear probe": "A run that fits a linear head to the same frozen features.",
    "Best by validation": "The run with the highest validation accuracy of all on these images.",
}

start_page(
    "pages/evaluate.py", "Evaluate a run on images it was not trained on, and look at its mistakes."
)


def draw_headline(run: Run, result: Evaluation) -> None:
    """Draw the accuracy beside its reference points, and what to know about its images."""
    name = accuracy_name(result.split)
    with st.container(horizontal=True):
        meaning = "Interval: Wilson's, for all such images. More images make it narrower."
        draw_share(name, result.accuracy, result.low, result.high, meaning)
        for label, reference in reference_points(run, found, result.split).items().items():
            title = (
                escape_markdown(reference.title) if reference.title.lower() != label.lower() else ""
            )
            draw_value(label, format_percent(reference.value), title, REFERENCES[label])
    draw_provenance(run, result)
    warn_undertrained(run)
    if note := precision_note(run):
        st.warning(note, icon=":material/info:")
        if can_evaluate_in_fp32(run):
            offer_fp32(run)


def draw_provenance(run: Run, result: Evaluation) -> None:
    """Say how many images were evaluated, and whether anything was chosen on them."""
    images = pluralize(result.images, f"{SPLIT_TITLES[result.split].lower()} image")
    if is_held_out(run, result.split):
        st.caption(f"{images}, {HELD_OUT}.")
        return
    optimistic = (
        f"The best epoch was chosen on these {images}, so the accuracy is a little optimistic"
    )
    if len(splits) > 1:
        st.caption(f"{optimistic}. Rely on the test images.")
    else:
        why = (
            "The run has not finished, so its test images have not been evaluated"
            if run.started["counts"].get("test")
            else "There are no test images"
        )
        st.warning(f"{optimistic}. {why}.", icon=":material/info:")


def offer_fp32(run: Run) -> None:
    """Offer to evaluate again in fp32, the precision in which the network is used."""
    offer(
        "Evaluate in fp32",
        f"evaluate:{run.run_dir}",
        "Evaluating the best epoch in fp32",
        partial(evaluate_in_fp32, run, readable_roots()),
        kept=False,
        button_key="evaluate-fp32",
        icon=":material/refresh:",
        help="Runs the best epoch's network on these images again, and replaces these predictions.",
    )


found, damaged = store().list_all()
runs = [run for run in found if run.is_evaluable]
if not runs:
    draw_empty_page(
        "No run has finished an epoch yet. Train one, or see it work on the sample first."
    )
    draw_damaged_runs(damaged)
    draw_next_step("pages/configure.py", "Configure a run", primary=False)
    st.stop()
chosen = choose_run(runs, damaged)
draw_lineage(chosen)
try:
    splits = list_predicted_splits(chosen)
    split = splits[0]
    if len(splits) > 1:
        split = st.segmented_control(
            "Images",
            splits,
            format_func=lambda name: f"{SPLIT_TITLES[name]} images",
            default=split,
            required=True,
            key="evaluate_split",
            persist_state="session",
        )
    judged = evaluation(chosen, split)
    draw_headline(chosen, judged)
    bodies = {"Mistakes": draw_confusions, "Metrics": draw_metrics, "Reliability": draw_reliability}
    for tab, body in zip(
        st.tabs(list(bodies), on_change="rerun", key="evaluate_view"), bodies.values(), strict=True
    ):
        if tab.open:
            with tab:
                body(chosen, judged)
except FinetuneError as error:
    st.error(escape_markdown(str(error)), icon=":material/error:")
    draw_damaged_runs(damaged)
    st.stop()
draw_export_buttons(chosen)
draw_damaged_runs(damaged)
draw_next_step("pages/compare.py", "Compare with other runs")
