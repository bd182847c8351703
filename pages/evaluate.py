"""Evaluate: how good a run is on images it did not train on, and where it goes wrong."""

import pandas as pd
import streamlit as st

from finetune_core.data.listing import image_root
from finetune_core.errors import FinetuneError
from finetune_core.evaluation.explain import Explanation, explain
from finetune_core.evaluation.metrics import Evaluation, confusion_order
from finetune_core.evaluation.predict import Predictor, load_predictor
from finetune_core.evaluation.results import evaluation, predicted_splits
from finetune_core.figures.judged import confusion_heatmap
from finetune_core.runs.store import Run
from finetune_core.training.predictions import predictions_changed
from finetune_core.words import SPLIT_WORDS, number, percent, things
from pages.shared import judging
from pages.shared.chrome import next_step, page, plain
from pages.shared.images import Picture, gallery
from pages.shared.state import choose_run, nothing_yet, store

MOST_CLASSES_DRAWN = 100
MOST_TO_EXPLAIN = 200
MOST_ROWS = 20  # of a table that is shown whole

page("pages/evaluate.py", "Judge a run on images it did not learn from, and look at its mistakes.")


@st.cache_resource(max_entries=2, show_spinner="Loading the network")
def predictor(run_id: str, _changed: int) -> Predictor:
    return load_predictor(store().run(run_id))


@st.cache_data(max_entries=100, show_spinner="Looking where the network looked")
def explanation(run_id: str, changed: int, sample: str, classes: tuple[int, ...]) -> Explanation:
    root = image_root(store().run(run_id).config.data)
    return explain(predictor(run_id, changed), root / sample, classes)


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
    if result.split == "test":
        st.caption("These images were used for nothing before: neither to train nor to choose the best epoch.")
    elif len(splits) > 1:
        st.caption(
            "The best epoch was chosen on these images, so the numbers are a little optimistic. Believe the test images."
        )
    else:
        st.caption(
            "The best epoch was chosen on these images, so the numbers are a little optimistic; the data have no test images to check them on."
        )


def confusion_and_classes(run: Run, result: Evaluation) -> None:
    mark = f"{run.run_id}-{result.split}"
    left, right = st.columns([3, 2], gap="medium")
    with left:
        st.subheader("What is taken for what", anchor=False)
        if len(result.classes) > MOST_CLASSES_DRAWN:
            frequent_confusions(result, mark)
        else:
            matrix(result, mark)
    with right:
        st.subheader("Class by class", anchor=False)
        per_class(result)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        true = cell_box("True class", f"true-{mark}", result)
        predicted = cell_box("Taken for", f"predicted-{mark}", result)
    if true is None or predicted is None:
        st.caption("Click a cell, or choose both classes, to see its images.")
        return
    rows = result.cell(true, predicted)
    names = f"{result.classes[true]}, " + ("named right" if true == predicted else f"taken for {result.classes[predicted]}")
    st.markdown(f"**{plain(names)}**: {things(len(rows), 'image')}")
    if len(rows):
        pictures(run, result, rows, f"cell-{mark}-{true}-{predicted}")


def cell_box(words: str, key: str, result: Evaluation) -> int | None:
    return st.selectbox(
        words,
        range(len(result.classes)),
        index=None,
        key=key,
        format_func=lambda one: result.classes[one],
        placeholder="any cell",
        width=220,
        on_change=forget_click,
    )


def forget_click() -> None:
    """What is marked in the figure must not differ from what the boxes say: it is drawn afresh."""
    st.session_state["clicks"] = st.session_state.get("clicks", 0) + 1


def matrix(result: Evaluation, mark: str) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        shares = st.segmented_control(
            "Numbers",
            ["images", "true", "predicted"],
            format_func={
                "images": "Images",
                "true": "Share of the true class",
                "predicted": "Share of the predicted class",
            }.get,
            default="images",
            required=True,
            key="shares",
            help="Share of the true class: where do its images go? (The diagonal is recall.) Share of the predicted class: what is taken "
            "for it? (The diagonal is precision.) Colours are shares always; where numbers are images, of the true class.",
        )
        order = "name"
        if len(result.classes) > 2:
            order = st.segmented_control(
                "Order",
                ["confusion", "name"],
                format_func={"confusion": "By confusion", "name": "By name"}.get,
                default="name",
                required=True,
                key="order",
                help="By confusion: classes that are taken for each other stand side by side.",
            )
    key = f"confusion-{mark}-{shares}-{order}-{st.session_state.get('clicks', 0)}"
    st.plotly_chart(
        confusion_heatmap(
            result.confusion, result.classes, shares, confusion_order(result.confusion) if order == "confusion" else None
        ),
        key=key,
        on_select=lambda: cell_clicked(key, mark, len(result.classes)),
        selection_mode="points",
        alt="Confusion matrix: true classes by row, predicted classes by column",
    )


def cell_clicked(key: str, mark: str, classes: int) -> None:
    points = st.session_state[key]["selection"]["points"]
    if points:
        st.session_state[f"true-{mark}"], st.session_state[f"predicted-{mark}"] = divmod(int(points[0]["customdata"]), classes)


def frequent_confusions(result: Evaluation, mark: str) -> None:
    st.caption("Too many classes for a picture: these are the most frequent confusions.")
    table = result.confusions(50)
    key = f"confusions-{mark}-{st.session_state.get('clicks', 0)}"

    def row_chosen() -> None:
        rows = st.session_state[key]["selection"]["rows"]
        if rows:
            names = list(result.classes)
            for column in ("true", "predicted"):
                st.session_state[f"{column}-{mark}"] = names.index(table.at[rows[0], column])

    st.dataframe(
        table.rename(columns=str.capitalize),
        hide_index=True,
        key=key,
        on_select=row_chosen,
        selection_mode="single-row",
        height=320,
    )


def per_class(result: Evaluation) -> None:
    columns = ["class", "recall", "precision", "f1", "images", "roc_auc", "average_precision"]
    table = result.hardest[columns]
    table[["recall", "precision", "f1"]] *= 100
    share, area = {"format": "%.0f %%", "width": "small"}, {"format": "%.3f", "width": "small"}
    st.dataframe(
        table.rename(columns={"class": "Class", "images": "Images"}),
        hide_index=True,
        height="content" if len(table) <= MOST_ROWS else "auto",
        column_config={
            "recall": st.column_config.ProgressColumn(
                "Recall", help="Of the images of this class, the share that were found.", min_value=0, max_value=100, **share
            ),
            "precision": st.column_config.NumberColumn(
                "Precision", help="Of the images given this class, the share that have it.", **share
            ),
            "f1": st.column_config.NumberColumn("F1", help="Precision and recall in one number (harmonic mean).", **share),
            "roc_auc": st.column_config.NumberColumn(
                "ROC AUC",
                help="How often an image of this class gets a higher probability for it than another image. 0.5 is a guess.",
                **area,
            ),
            "average_precision": st.column_config.NumberColumn(
                "AP", help="Average precision: the area under the precision-recall curve of this class.", **area
            ),
        },
    )
    words = "The hardest classes come first."
    if result.per_class.drop(columns="class").isna().any(axis=None):
        words += " Empty: not defined, because no image here is of this class, or none was taken for it."
    st.caption(words)


def mistakes(run: Run, result: Evaluation) -> None:
    by = st.segmented_control(
        "Order",
        ["confidence", "loss"],
        format_func={"confidence": "Surest first", "loss": "Highest loss first"}.get,
        default="confidence",
        required=True,
        key="mistakes-by",
        help="Loss: how little probability the true class was given. It also finds images that are named right, but barely.",
    )
    if by == "loss":
        st.subheader("Highest losses", anchor=False)
        pictures(run, result, result.top_losses, "losses")
        return
    wrong = result.mistakes
    st.subheader("Most confident mistakes", anchor=False)
    if wrong.empty:
        st.success("No mistakes on these images.", icon=":material/check_circle:")
        return
    st.caption(f"{things(len(wrong), 'mistake')}, the surest first. A sure mistake is often a wrong label.")
    pictures(run, result, wrong, "mistakes")


def pictures(run: Run, result: Evaluation, rows: pd.DataFrame, key: str) -> None:
    """A gallery of predictions, and a way to ask why."""
    root = image_root(run.config.data)

    def picture(index: int) -> Picture:
        row = rows.iloc[index]
        caption = in_words(result, row)
        return Picture(root / row["id"], caption, f"{row['id']}: {caption}")

    gallery(len(rows), picture, key=key, per_page=12)
    why(run, result, rows.head(MOST_TO_EXPLAIN), key)


def in_words(result: Evaluation, row: pd.Series) -> str:
    true = result.classes[row["label"]]
    taken = true if row["correct"] else f"{true}, taken for {result.classes[row['predicted']]}"
    return f"{taken} ({percent(row['confidence'], 0)})"


def why(run: Run, result: Evaluation, rows: pd.DataFrame, key: str) -> None:
    """Grad-CAM of one of the images: its class against what it was taken for, or against the runner-up."""
    by_id = rows.set_index("id")
    chosen = st.selectbox(
        "Why?",
        by_id.index,
        index=None,
        key=f"why-{key}",
        format_func=lambda sample: f"{sample}: {in_words(result, by_id.loc[sample])}",
        placeholder="Choose an image to see what the network looked at",
        help="Grad-CAM (Selvaraju et al. 2017): the parts of an image that speak for a class. It shows where, not why, and coarsely.",
    )
    if chosen is None:
        return
    row = by_id.loc[chosen]
    order = row["probabilities"].argsort()[::-1]
    classes = list(dict.fromkeys([int(row["label"]), *map(int, order[:2])]))[:2]
    try:
        seen = explanation(run.run_id, predictions_changed(run.run_dir), chosen, tuple(classes))
    except FinetuneError as error:
        st.error(plain(str(error)), icon=":material/error:")
        return
    with st.container(horizontal=True):
        st.image(seen.picture, caption="as the network sees it", width=220, alt=f"{chosen} as the network sees it")
        for one in classes:
            name = result.classes[one]
            role = "its class" if one == row["label"] else "taken for" if one == row["predicted"] else "the next likeliest"
            words = f"{role}: {name} ({percent(row['probabilities'][one], 0)})"
            st.image(seen.overlays[one], caption=plain(words), width=220, alt=f"{chosen}: what speaks for {name}")
    dark = [result.classes[one] for one in classes if not seen.heat[one].any()]
    if dark:
        st.caption(plain(f"Nothing in the image speaks for {' or '.join(dark)}."))
    st.caption(
        f"Bright: speaks for the class. The map has {seen.cells} × {seen.cells} cells; finer detail than that is smoothing."
    )


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
    headline(outcome)
    confusion_and_classes(chosen, outcome)
    bodies = {
        "Mistakes": lambda: mistakes(chosen, outcome),
        "All numbers": lambda: judging.all_scores(chosen, outcome),
        "Curves": lambda: judging.curves(outcome),
        "How sure": lambda: judging.how_sure(chosen, outcome),
        "Slices": lambda: judging.by_slice(chosen, outcome),
        "Worse images": lambda: judging.robustness(chosen, outcome),
    }
    for tab, body in zip(st.tabs(list(bodies), on_change="rerun", key="evaluate_view"), bodies.values(), strict=True):
        if tab.open:
            with tab:
                body()
except FinetuneError as error:
    st.error(plain(str(error)), icon=":material/error:")
    st.stop()
next_step("pages/compare.py", "Compare with other runs")
