"""Evaluate: how good a run is on images it did not train on, and where it goes wrong."""

import streamlit as st

from finetune_core.data.listing import image_root
from finetune_core.errors import FinetuneError
from finetune_core.evaluation.metrics import Evaluation
from finetune_core.evaluation.results import evaluation, predicted_splits
from finetune_core.figures.judged import confusion_heatmap
from finetune_core.runs.store import Run
from finetune_core.words import SPLIT_WORDS, number, percent, things
from pages.shared.chrome import next_step, page, plain
from pages.shared.images import Picture, gallery
from pages.shared.state import choose_run, nothing_yet, store

MOST_CLASSES_DRAWN = 100

page("pages/evaluate.py", "Judge a run on images it did not learn from, and look at its mistakes.")


def headline(result: Evaluation) -> None:
    with st.container(horizontal=True):
        st.metric("Accuracy", percent(result.accuracy), border=True)
        st.metric(
            "95 % interval",
            f"{percent(result.low)} to {percent(result.high)}",
            help="The accuracy on all such images lies in here, 19 times out of 20 (Wilson's interval). More images make it narrower.",
            border=True,
        )
        st.metric("Loss", f"{result.loss:.3f}", help="Mean cross-entropy: also counts how sure the network was.", border=True)
        st.metric("Images", number(result.images), border=True)
    if result.split == "val":
        st.caption("The best epoch was chosen on these images, so the numbers are a little optimistic.")
    else:
        st.caption("These images were used for nothing before: neither to train nor to choose the best epoch.")


def confusion(result: Evaluation) -> None:
    st.subheader("What is taken for what", anchor=False)
    if len(result.classes) > MOST_CLASSES_DRAWN:
        st.caption("Too many classes for a picture: these are the most frequent confusions.")
        st.dataframe(result.confusions(50).rename(columns=str.capitalize), hide_index=True)
        return
    st.plotly_chart(
        confusion_heatmap(result.confusion, result.classes),
        key="confusion",
        alt="Confusion matrix: true classes by row, predicted classes by column",
    )
    st.caption("The numbers are images; the stronger the colour, the larger the share of the true class.")


def per_class(result: Evaluation) -> None:
    st.subheader("Class by class", anchor=False)
    share = {"format": "percent", "min_value": 0.0, "max_value": 1.0}
    st.dataframe(
        result.per_class.rename(columns={"class": "Class", "images": "Images"}),
        hide_index=True,
        column_config={
            "precision": st.column_config.ProgressColumn(
                "Precision", help="Of the images given this class, the share that have it.", **share
            ),
            "recall": st.column_config.ProgressColumn(
                "Recall", help="Of the images of this class, the share that were found.", **share
            ),
            "f1": st.column_config.ProgressColumn("F1", help="Precision and recall in one number (harmonic mean).", **share),
        },
    )


def mistakes(run: Run, result: Evaluation) -> None:
    wrong = result.mistakes
    st.subheader("Most confident mistakes", anchor=False)
    if wrong.empty:
        st.success("No mistakes on these images.", icon=":material/check_circle:")
        return
    st.caption(f"{things(len(wrong), 'mistake')}, the surest first. A sure mistake is often a wrong label.")

    def picture(index: int) -> Picture:
        row = wrong.iloc[index]
        true, taken = result.classes[row["label"]], result.classes[row["predicted"]]
        caption = f"{true}, taken for {taken} ({percent(row['confidence'], 0)})"
        return Picture(image_root(run.config.data) / row["id"], caption, f"{row['id']}: {caption}")

    gallery(len(wrong), picture, key="mistakes", per_page=12)


runs = [run for run in store().runs() if run.judged]
if not runs:
    nothing_yet("No run has finished an epoch yet. Train one, or see it work on the sample first.")
    next_step("pages/configure.py", "Configure a run", primary=False)
    st.stop()
chosen = choose_run(runs)
try:
    splits = predicted_splits(chosen)
    split = splits[0]
    if len(splits) > 1:
        split = st.segmented_control(
            "Images", splits, format_func=lambda name: f"{SPLIT_WORDS[name]} images", default=split, required=True
        )
    outcome = evaluation(chosen, split)
except FinetuneError as error:
    st.error(plain(str(error)), icon=":material/error:")
    st.stop()
headline(outcome)
confusion(outcome)
per_class(outcome)
mistakes(chosen, outcome)
next_step("pages/compare.py", "Compare with other runs")
