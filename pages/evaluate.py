"""Evaluate: how good a run is on images it did not train on, and where it goes wrong."""

from functools import partial
from math import isnan

import streamlit as st

from finetune_core.errors import FinetuneError
from finetune_core.evaluation.reference_points import reference_points
from finetune_core.evaluation.single_run.evaluate import (
    evaluation,
    precision_note,
    predicted_splits,
)
from finetune_core.evaluation.single_run.fp32 import can_be_evaluated, evaluate_in_fp32
from finetune_core.evaluation.single_run.metrics import Evaluation, confusion_order
from finetune_core.figures.evaluation import Shares, confusion_heatmap
from finetune_core.formatting import SPLIT_WORDS, accuracy_name, number, percent, things
from finetune_core.runs.store import Run
from pages.shared.chrome import next_step, page, plain
from pages.shared.data.chosen import readable_roots
from pages.shared.evaluation import tabs
from pages.shared.evaluation.calibration import calibration
from pages.shared.evaluation.export import export_buttons
from pages.shared.evaluation.galleries import mistakes, pictures
from pages.shared.evaluation.shifted import shifted_data
from pages.shared.evaluation.tta import flips_at_test_time
from pages.shared.jobs import offer
from pages.shared.runs.backend import store
from pages.shared.runs.damaged import damaged_runs
from pages.shared.runs.first_run import nothing_yet
from pages.shared.runs.live import warn_undertrained
from pages.shared.runs.picker import choose_run
from pages.shared.runs.run_settings import lineage

MOST_CLASSES_DRAWN = 100
MOST_ROWS = 12  # of a table that is shown whole
NUMBERS: dict[Shares, str] = {
    "images": "Images",
    "true": "% of true class",
    "predicted": "% of predicted class",
}
REFERENCES = (
    "Majority class: always answering with the most frequent class of the training images. "
    "Linear probe: a run that fits a linear head to the same frozen features. Best by "
    "validation: the run with the highest validation accuracy of all on these images."
)
ORDERS = {"name": "By name", "confusion": "By confusion"}

page(
    "pages/evaluate.py", "Evaluate a run on images it was not trained on, and look at its mistakes."
)


def headline(run: Run, result: Evaluation) -> None:
    name = accuracy_name(result.split)
    with st.container(horizontal=True):
        st.metric(name, percent(result.accuracy), border=True)
        st.metric(
            "95 % interval",
            f"{percent(result.low)} to {percent(result.high)}",
            help=f"Wilson's interval for the {name.lower()} on all such images. "
            "More images make it narrower.",
            border=True,
        )
        st.metric(
            "Loss",
            f"{result.loss:.3f}",
            help="Mean cross-entropy (log loss): also counts how confident the network was.",
            border=True,
        )
        st.metric("Images", number(result.images), border=True)
    beside(run, result)
    warn_undertrained(run)
    if note := precision_note(run):
        st.warning(note, icon=":material/info:")
        if can_be_evaluated(run):
            in_fp32(run)
    if run.history.fitted:
        st.caption(
            "These images were used for nothing before: neither to train nor to choose anything."
        )
        return
    if result.split == "test":
        st.caption(
            "These images were used for nothing before: neither to train nor to choose the best epoch."
        )
        return
    optimistic = "The best epoch was chosen on these images, so the numbers are a little optimistic"
    if len(splits) > 1:
        st.caption(f"{optimistic}. Rely on the test images.")
    else:
        st.warning(f"{optimistic}. There are no test images.", icon=":material/info:")


def beside(run: Run, result: Evaluation) -> None:
    """Draw what else is known of the same images, smaller than the run's own accuracy."""
    words = reference_points(run, found, result.split).in_sentence()
    with st.container():  # always there, so that nothing below is drawn anew
        if words:
            st.markdown(plain(words), help=REFERENCES)


def in_fp32(run: Run) -> None:
    """The way to numbers that hold for the network as it is used."""
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


def confusion_matrix(run: Run, result: Evaluation) -> None:
    """The confusion matrix, and the images of the cell that is chosen."""
    mark = f"{run.run_id}-{result.split}"
    st.header("Confusion matrix", anchor=False)
    if len(result.classes) > MOST_CLASSES_DRAWN:
        frequent_confusions(result, mark)
    else:
        matrix(result, mark)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        true = cell_box("True class", f"true-{mark}", result)
        predicted = cell_box("Predicted class", f"predicted-{mark}", result)
    if true is None and predicted is None:
        st.caption("Click a cell, or choose a class, to see its images.")
        return
    rows = result.cell(true, predicted)
    st.markdown(
        f"**{plain(cell_in_words(result, true, predicted))}**: {things(len(rows), 'image') if len(rows) else 'no image'}"
    )
    if len(rows):
        caption = (
            None
            if true is None or predicted is None
            else lambda row: f"confidence {percent(row['confidence'], 0)}"
        )
        pictures(run, result, rows, f"cell-{mark}-{true}-{predicted}", caption, per_page=6)


def cell_in_words(result: Evaluation, true: int | None, predicted: int | None) -> str:
    if true is not None and predicted is not None:
        return f"{result.classes[true]}, predicted {'correctly' if true == predicted else f'as {result.classes[predicted]}'}"
    sides = (("of", true), ("predicted as", predicted))
    (words,) = (f"{how} {result.classes[label]}" for how, label in sides if label is not None)
    return f"All {words}, the highest loss first"


def cell_box(words: str, key: str, result: Evaluation) -> int | None:
    return st.selectbox(
        words,
        range(len(result.classes)),
        index=None,
        key=key,
        format_func=lambda one: result.classes[one],
        placeholder="any",
        width=200,
        on_change=forget_row,
    )


def forget_row() -> None:
    """What is marked in the table must not differ from what the boxes say: it is drawn afresh."""
    st.session_state["rows_forgotten"] = st.session_state.get("rows_forgotten", 0) + 1


def matrix_view(result: Evaluation) -> tuple[Shares, str]:
    """What the cells say, one of ``NUMBERS``, and how the classes are sorted, one of ``ORDERS``."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        shares = st.segmented_control(
            "Numbers",
            list(NUMBERS),
            format_func=NUMBERS.__getitem__,
            default="images",
            required=True,
            key="shares",
            persist_state="session",
            help="Normalized by row, the diagonal is recall; by column, it is precision. Colours are always shares; where numbers are images, shares of the row.",
        )
        order = "name"
        if len(result.classes) > 2:
            order = st.segmented_control(
                "Order",
                list(ORDERS),
                format_func=ORDERS.__getitem__,
                default="name",
                required=True,
                key="order",
                persist_state="session",
                help="By confusion: classes that are often confused are adjacent.",
            )
    return shares, order


def matrix(result: Evaluation, mark: str) -> None:
    shares, order = matrix_view(result)
    key = f"confusion-{mark}-{shares}-{order}"
    st.plotly_chart(
        confusion_heatmap(
            result.confusion,
            result.classes,
            shares,
            confusion_order(result.confusion) if order == "confusion" else None,
            # As the boxes below say: plotly's own selection is gone once the figure changes.
            chosen=(
                st.session_state.get(f"true-{mark}"),
                st.session_state.get(f"predicted-{mark}"),
            ),
            dark=st.context.theme.type == "dark",
        ),
        key=key,
        on_select=lambda: cell_clicked(key, mark, len(result.classes)),
        selection_mode="points",
        config={"displayModeBar": False},
        alt="Confusion matrix: true classes by row, predicted classes by column",
    )


def cell_clicked(key: str, mark: str, classes: int) -> None:
    points = st.session_state[key]["selection"]["points"]
    if points:
        st.session_state[f"true-{mark}"], st.session_state[f"predicted-{mark}"] = divmod(
            int(points[0]["customdata"]), classes
        )


def frequent_confusions(result: Evaluation, mark: str) -> None:
    st.caption("Too many classes for a matrix: these are the most frequent confusions.")
    table = result.confusions(50)
    key = f"confusions-{mark}-{st.session_state.get('rows_forgotten', 0)}"

    def row_chosen() -> None:
        rows = st.session_state[key]["selection"]["rows"]
        if rows:
            names = list(result.classes)
            for column in ("true", "predicted"):
                st.session_state[f"{column}-{mark}"] = names.index(str(table.at[rows[0], column]))

    st.dataframe(
        table.rename(columns=str.capitalize),
        hide_index=True,
        key=key,
        on_select=row_chosen,
        selection_mode="single-row",
        height=320,
    )


def per_class(result: Evaluation) -> None:
    st.header("Per-class metrics", anchor=False)
    found = result.hardest
    table = found[["class", "recall", "precision", "f1", "images"]]
    table[["recall", "precision", "f1"]] *= 100
    table.insert(
        2,
        "interval",
        [
            _interval(low, high)
            for low, high in zip(found["recall_low"], found["recall_high"], strict=True)
        ],
    )
    share = "%.1f %%"
    st.dataframe(
        table.rename(columns={"class": "Class", "images": "Images"}),
        hide_index=True,
        height="content" if len(table) <= MOST_ROWS else "auto",
        placeholder="–",
        column_config={
            "recall": st.column_config.ProgressColumn(
                "Recall",
                help="The share of the images of this class that were predicted as this class.",
                min_value=0,
                max_value=100,
                format=share,
            ),
            "interval": st.column_config.TextColumn(
                "95 % interval",
                help="Of the recall (Wilson). The fewer images of a class, the wider: small differences between classes "
                "are often chance.",
            ),
            "precision": st.column_config.NumberColumn(
                "Precision",
                help="The share of the images predicted as this class that are of this class.",
                format=share,
            ),
            "f1": st.column_config.NumberColumn(
                "F1", help="Precision and recall in one number (harmonic mean).", format=share
            ),
        },
    )
    words = "The hardest classes come first."
    if table.isna().any(axis=None):
        words += " –: not defined, because no image here is of this class, or none was predicted as this class."
    st.caption(words)


def _interval(low: float, high: float) -> str | None:
    """In whole percent: the table is narrow."""
    return None if isnan(low) else f"{percent(low, 0)} to {percent(high, 0)}"


found, damaged = store().all()
runs = [run for run in found if run.judged]
if not runs:
    nothing_yet("No run has finished an epoch yet. Train one, or see it work on the sample first.")
    damaged_runs(damaged)
    next_step("pages/configure.py", "Configure a run", primary=False)
    st.stop()
chosen = choose_run(runs, damaged)
lineage(chosen)
try:
    splits = predicted_splits(chosen)
    split = splits[0]
    if len(splits) > 1:
        split = st.segmented_control(
            "Images",
            splits,
            format_func=lambda name: f"{SPLIT_WORDS[name]} images",
            default=split,
            required=True,
            key="evaluate_split",
            persist_state="session",
        )
    judged = evaluation(chosen, split)
    headline(chosen, judged)
    left, right = st.columns([5, 4], gap="medium")
    with left:
        confusion_matrix(chosen, judged)
    with right:
        per_class(judged)
    bodies = {
        "Mistakes": mistakes,
        "Metrics": tabs.all_scores,
        "Curves": tabs.curves,
        "Calibration": calibration,
        "Slices": tabs.by_slice,
        "Robustness": tabs.robustness,
        "Shifted data": shifted_data,
        "Flips at test time": flips_at_test_time,
    }
    for tab, body in zip(
        st.tabs(list(bodies), on_change="rerun", key="evaluate_view"), bodies.values(), strict=True
    ):
        if tab.open:
            with tab:
                body(chosen, judged)
except FinetuneError as error:
    st.error(plain(str(error)), icon=":material/error:")
    damaged_runs(damaged)
    st.stop()
export_buttons(chosen)
damaged_runs(damaged)
next_step("pages/compare.py", "Compare with other runs")
