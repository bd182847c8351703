"""Views of one split of one run on Evaluate: metrics, slices, robustness."""

from functools import partial
from math import isnan

import pandas as pd
import streamlit as st

from finetune_core.evaluation.single_run.corruptions import CLEAN, CORRUPTIONS
from finetune_core.evaluation.single_run.curves import BAND_RESAMPLES, OneVsRest
from finetune_core.evaluation.single_run.evaluate import class_curves, scores, sliced
from finetune_core.evaluation.single_run.metrics import Evaluation
from finetune_core.evaluation.single_run.robustness import MOST_IMAGES, measure_robustness
from finetune_core.evaluation.single_run.robustness_files import known_robustness
from finetune_core.evaluation.single_run.scores import (
    AREAS,
    INTERVALS,
    Scores,
    range_text,
    score_name,
    value_text,
)
from finetune_core.evaluation.single_run.slices import FEW
from finetune_core.figures.evaluation import (
    recall_precision_curves,
    robustness_lines,
    roc_curves,
    slice_dots,
)
from finetune_core.formatting import accuracy_name, interval_text, number, percent, things
from finetune_core.runs.store import Run
from pages.shared.chrome import plain
from pages.shared.data.chosen import readable_roots
from pages.shared.jobs import offer

_MEANINGS = {
    "accuracy": "Share of images that are classified correctly.",
    "balanced_accuracy": "Mean of the classes' recalls: every class counts the same.",
    "precision_macro": (
        "Mean of the classes' precisions. A class that is never predicted counts as 0."
    ),
    "recall_macro": "Mean of the classes' recalls: the same number as balanced accuracy.",
    "f1_macro": "Harmonic mean of precision and recall for each class; then the mean over classes.",
    "f1_micro": (
        "The same over all images at once. Where every image has one class, it equals accuracy."
    ),
    "f1_weighted": "The mean of the classes' F1, each weighted by its number of images.",
    "matthews_corrcoef": (
        "Correlation of true and predicted classes. 1 is perfect, 0 is chance level; robust to "
        "unequal class sizes."
    ),
    "cohen_kappa": (
        "Accuracy beyond what chance would give with the same class sizes. 1 is perfect, 0 is "
        "chance level."
    ),
    "top_3_accuracy": "Share of images whose class is among the three most likely.",
    "top_5_accuracy": "Share of images whose class is among the five most likely.",
    "roc_auc": (
        "How often an image of a class gets a higher probability for it than an image of another "
        "class; mean over classes. 0.5 is chance level."
    ),
    "average_precision": (
        "Area under the precision-recall curve of a class; mean over classes. Chance level is the "
        "prevalence of the class."
    ),
    "log_loss": "Mean cross-entropy of the true class, in nats. 0 is best.",
    "brier": "Squared distance between the probabilities and the truth: 0 is best, 2 worst.",
    "ece": "Mean gap between confidence and accuracy over the bins of Calibration. 0 is best.",
}
_VERDICTS = {"worse": "worse than the rest", "better": "better than the rest"}
_CURVES_AT_FIRST, _MOST_CURVES = 3, 12
_MOST_ROWS = 12  # rows of a table that is shown in full


def draw_metrics(run: Run, result: Evaluation) -> None:
    """Draw all metrics, the metrics by class, and, unfolded, the curves."""
    left, right = st.columns([5, 4], gap="medium")
    with left:
        st.header("All metrics", anchor=False)
        _draw_all_scores(run, result)
    with right:
        _draw_per_class(result)
    box = st.expander(
        "ROC and precision-recall curves",
        icon=":material/show_chart:",
        key="curves_box",
        on_change="rerun",
    )
    if box.open:
        with box:
            _draw_curves(run, result)


def _draw_all_scores(run: Run, result: Evaluation) -> None:
    with st.spinner("Bootstrapping the intervals"):
        found = scores(run, result.split)
    rows = [
        {
            "Metric": score_name(row["name"], result.split),
            "Value": value_text(row["name"], row["value"]),
            "95 % interval": range_text(row["name"], row["low"], row["high"]),
            "Meaning": _MEANINGS[row["name"]],
        }
        for row in found.table.to_dict("records")
    ]
    st.dataframe(rows, hide_index=True, height="content")
    if found.absent:
        names = ", ".join(result.classes[label] for label in found.absent[:8]) + (
            ", …" if len(found.absent) > 8 else ""
        )
        st.caption(
            plain(
                f"There are no images of {things(len(found.absent), 'class', 'classes')} here "
                f"({names}): means leave them out."
            )
        )
    st.caption(
        f"Intervals: {INTERVALS}: images were drawn with replacement {number(found.resamples)} "
        "times (that of the ECE is corrected for its bias). They say what other images could have "
        "shown, not what another training run could have."
    )


def _draw_per_class(result: Evaluation) -> None:
    st.header("By class", anchor=False, help="The least recalled class comes first.")
    found = result.hardest
    table = found[["class", "recall", "precision", "f1", "images"]]
    table[["recall", "precision", "f1"]] *= 100
    table.insert(
        2,
        "interval",
        [
            None if isnan(low) else interval_text(low, high)
            for low, high in zip(found["recall_low"], found["recall_high"], strict=True)
        ],
    )
    share = "%.1f %%"
    st.dataframe(
        table.rename(columns={"class": "Class", "images": "Images"}),
        hide_index=True,
        height="content" if len(table) <= _MOST_ROWS else "auto",
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
                help="Of the recall (Wilson). The fewer images of a class, the wider: small "
                "differences between classes are often chance.",
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
    if table.isna().any(axis=None):
        st.caption(
            "–: not defined, because no image here is of this class, or none was predicted as it."
        )


def _draw_curves(run: Run, result: Evaluation) -> None:
    """Draw ROC and precision-recall curves, one class against the others."""
    defined = result.per_class.dropna(subset=["roc_auc", "average_precision"])
    if defined.empty:
        st.info(
            "These curves are one-vs-rest: here all images are of one class.",
            icon=":material/info:",
        )
        return
    hardest = defined.sort_values("average_precision").index.tolist()
    chosen = st.multiselect(
        "Classes",
        hardest,
        default=hardest[:_CURVES_AT_FIRST],
        format_func=lambda label: result.classes[label],
        key=f"curves-{_widget_mark(run, result)}",
        persist_state="session",
        help="One-vs-rest. The hardest come first.",
        max_selections=_MOST_CURVES,
    )
    if not chosen:
        st.caption("Choose a class.")
        return
    with st.spinner("Bootstrapping the intervals"):
        curves = {
            label: curve for label in chosen if (curve := class_curves(run, result.split, label))
        }
        areas = scores(run, result.split)
    _draw_two_curves({result.classes[label]: curve for label, curve in curves.items()})
    st.dataframe(
        _make_area_table(result, areas),
        hide_index=True,
        height="content" if len(hardest) <= _MOST_CURVES else 320,
    )
    text = (
        "Shaded: pointwise 95 % intervals (percentile bootstrap within classes, "
        f"{number(BAND_RESAMPLES)} resamples)."
    )
    rare_classes = [
        result.classes[label] for label in curves if result.per_class["images"].loc[label] < FEW
    ]
    if rare_classes:
        text += f" Few images of {', '.join(rare_classes)}: even the intervals are rough."
    st.caption(plain(text))


def _draw_two_curves(curves: dict[str, OneVsRest]) -> None:
    """Draw both kinds of curves side by side.

    Args:
        curves: curves by name of the class.
    """
    left, right = st.columns(2)
    with left:
        st.markdown(
            "**ROC**",
            help="Each point is one threshold on the probability of the class: true positive rate "
            "against false positive rate. The nearer to the top left, the better.",
        )
        st.plotly_chart(roc_curves(curves), key="roc", alt="ROC curves of the chosen classes")
    with right:
        st.markdown(
            "**Precision-recall**",
            help="More informative than ROC for rare classes. The nearer to the top right, the "
            "better. Dotted: the prevalence of the class (its share of the images), which is the "
            "precision at chance level.",
        )
        st.plotly_chart(
            recall_precision_curves(curves),
            key="recall-precision",
            alt="Precision against recall for the chosen classes",
        )


def _make_area_table(result: Evaluation, found: Scores) -> pd.DataFrame:
    """Return the areas under both curves by class, the hardest class first."""
    rows = found.classes.assign(
        Class=result.classes, Images=result.per_class["images"]
    ).sort_values("average_precision")
    table = rows[["Class", "Images"]].copy()
    table["Prevalence"] = [percent(share) for share in table["Images"] / result.images]
    for name, title in AREAS.items():
        table[title] = [value_text(name, one) for one in rows[name]]
        bounds = zip(rows[f"{name}_low"], rows[f"{name}_high"], strict=True)
        table[f"{title}, 95 % interval"] = [range_text(name, low, high) for low, high in bounds]
    return table


def draw_slices(run: Run, result: Evaluation) -> None:
    """Draw the accuracy by slice of the images' metadata."""
    facts, table = sliced(run, result.split)
    if table.empty:
        st.info(
            "There is no metadata to slice these images by. Open the data on the Dataset page "
            "once, or add columns to the manifest.",
            icon=":material/info:",
        )
        return
    significant, name = table[table["verdict"].isin(_VERDICTS)], accuracy_name(result.split)
    for row in significant.to_dict("records"):
        st.markdown(
            f"- {plain(row['by'])} **{plain(row['slice'])}**: "
            f"{name.lower()} {percent(row['accuracy'])}, "
            f"{_VERDICTS[row['verdict']]} "
            f"({things(row['images'], 'image')})"
        )
    if significant.empty:
        st.markdown("No slice is clearly better or worse than the rest.")
    by = st.selectbox(
        f"{name} by",
        list(dict.fromkeys([*significant["by"], *facts.own, *table["by"]])),
        key=f"by-{_widget_mark(run, result)}",
        persist_state="session",
        help="Metadata of each image, and the columns of a manifest. Numbers are binned by "
        "quartile.",
    )
    visible = table[table["by"] == by]
    st.plotly_chart(
        slice_dots(visible, result.accuracy, name),
        key="slices",
        alt=f"{name} by {by}, with 95 % intervals",
    )
    has_few = (visible["images"] < FEW).any()
    st.caption(
        "The dotted line is the accuracy on all of these images; the number behind a name is how "
        "many there are. "
        + (f"Slices with fewer than {FEW} images are shown, but not compared. " if has_few else "")
        + "Better and worse: significant by Fisher's exact test against the rest (false discovery "
        "rate 5 %)."
    )


def draw_robustness(run: Run, result: Evaluation) -> None:
    """Draw the accuracy on corrupted images, measured on request."""
    st.markdown(
        "The same images, corrupted with increasing severity: blur, noise, JPEG, brightness, "
        "rotation."
    )
    known = known_robustness(run, result.split)
    images = min(MOST_IMAGES, result.images)
    text = "Measure again" if known else f"Measure on {things(images, 'image')}"
    offer(
        text,
        f"robustness:{_widget_mark(run, result)}",
        "Predicting corrupted images",
        partial(measure_robustness, run, result.split, roots=readable_roots()),
        kept=False,
        button_key="measure",
        icon=":material/blur_on:",
        type="tertiary" if known else "secondary",
    )
    if known is None:
        return
    lowest = known.rows.groupby("corruption")["accuracy"].min()
    worst = str(lowest.drop(CLEAN).idxmin())
    st.markdown(
        f"Clean {accuracy_name(result.split).lower()}: {percent(lowest[CLEAN])}. Most harmful: "
        f"**{CORRUPTIONS[worst].title}**, down to "
        f"{percent(lowest[worst])}."
    )
    st.plotly_chart(
        robustness_lines(
            known.rows,
            {name: one.title for name, one in CORRUPTIONS.items()},
            accuracy_name(result.split),
        ),
        key="robustness",
        alt=f"{accuracy_name(result.split)} by kind and severity of corruption",
    )
    amounts = "; ".join(
        f"{one.title} {', '.join(f'{amount:g}' for amount in one.severities)} ({one.unit})"
        for one in CORRUPTIONS.values()
    )
    st.caption(
        f"{things(known.images, 'image')} of {number(result.images)}, drawn with a fixed seed. "
        f"Computed in fp32. Bars: 95 % intervals (Wilson). Mild, middle and strong: {amounts}; in "
        "the manner of Hendrycks & Dietterich 2019. The result is kept with the run."
    )


def _widget_mark(run: Run, result: Evaluation) -> str:
    """Return a mark of the evaluation, so that each one has its own widgets."""
    return f"{run.run_id}-{result.split}"
